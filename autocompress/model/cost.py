"""What a policy costs, by formula; and what fvcore counts on a real module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from autocompress.model.shapes import LayerShape, resolver
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import techniques
from autocompress.policy.settings import CompressionSettings
from autocompress.task.calling import Flat
from autocompress.task.nested import take, tensors

CONTAINER_BYTES = 2048
"""What an ONNX file spends beside the weights: the graph's own text, roughly."""


_MANY = 0.1
"""Share of the parameters that is worth a word where the figures do not count them."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer after its policy."""

    macs: int
    params: int
    size_bytes: int
    bops: int


@dataclass(frozen=True, slots=True)
class Cost:
    """A whole model after its policy.

    Args:
        macs: multiply-adds per sample of the listed layers.
        params: of the model as it is trained: of its layers, and what no layer holds (norms,
            scales, tables of positions).
        size_bytes: of those weights as they would be stored: integers with one scale per output
            channel or block, sparse weights as a bitmap and their values.
        bops: multiply-adds times weight bits times activation bits.
    """

    macs: int
    params: int
    size_bytes: int
    bops: int


def policy_cost(inventory: Inventory, policy: Policy, settings: CompressionSettings) -> Cost:
    """Cost of a policy by formula, in microseconds; nothing is built.

    Args:
        inventory: of the uncompressed model.
        policy: what is done; ``student`` policies cannot be told from the inventory.
        settings: ``channel_multiple`` rounds the kept channels.
    """
    shapes = resolver(inventory, settings).layers(policy)
    return Cost(*_summed(inventory, shapes.__getitem__, range(len(shapes))))


def outside_of_layers(model: nn.Module, inventory: Inventory) -> tuple[str, ...]:
    """Of a model with many parameters outside of layers and norms, that few of them can go.

    Args:
        model: that the inventory is of.
        inventory: lists the layers.

    Returns:
        A sentence; nothing where that is less than a tenth of all parameters.
    """
    within = {
        id(parameter)
        for name, module in model.named_modules()
        if name in inventory.by_name or "norm" in type(module).__name__.lower()
        for parameter in module.parameters()
    }
    sizes = {n: p.numel() * (1 + p.is_complex()) for n, p in model.named_parameters()}
    outside = {n: sizes[n] for n, p in model.named_parameters() if id(p) not in within}
    share = sum(outside.values()) / max(1, sum(sizes.values()))
    if share < _MANY:
        return ()
    first = max(outside, key=outside.__getitem__)
    more = f" and {len(outside) - 1} more" * (len(outside) > 1)
    return (
        f"{share:.0%} of the parameters ({first}{more}) lie outside of layers: they lose channels "
        "with the layers that they meet, and nothing else makes them smaller. `macs` do not count "
        "what is done with them.",
    )


def cost_changes(
    inventory: Inventory, policy: Policy, settings: CompressionSettings
) -> Callable[[Mapping[int, LayerShape]], Cost]:
    """Costs of policies that differ from one in a few layers, in time of these alone.

    Args:
        inventory, policy, settings: as in ``policy_cost``.

    Returns:
        From what ``Resolver.changes`` finds to the cost of the whole model.
    """
    shapes = resolver(inventory, settings).layers(policy)
    before = _summed(inventory, shapes.__getitem__, range(len(shapes)))
    tied: dict[int, list[int]] = {}
    for i, first in inventory.tied_places.items():
        tied.setdefault(first, []).append(i)

    def changed(found: Mapping[int, LayerShape]) -> Cost:
        moved = {*found, *(i for first in found for i in tied.get(first, ()))}
        old = _summed(inventory, shapes.__getitem__, moved)
        new = _summed(inventory, lambda i: found[i] if i in found else shapes[i], moved)
        return Cost(*(b - o + n for b, o, n in zip(before, old, new, strict=True)))

    return changed


def _summed(
    inventory: Inventory, shape_at: Callable[[int], LayerShape], places: Iterable[int]
) -> list[int]:
    """The fields of ``Cost``, of some layers; what is of none of them is counted once."""
    total = [0, inventory.other_params, CONTAINER_BYTES, 0]
    for i in places:
        shape, first = shape_at(i), inventory.tied_places.get(i)
        stored = first is not None and _stored_already(shape, shape_at(first))
        cost = layer_cost(shape, stored)
        total[0] += cost.macs
        total[1] += cost.params
        total[2] += cost.size_bytes
        total[3] += cost.bops
    return total


def _stored_already(shape: LayerShape, first: LayerShape) -> bool:
    """Whether a tied weight is kept in the same form by the layer that it is tied to."""
    one, other = first.policy, shape.policy
    same = one.weight_bits == other.weight_bits and one.weight_block == other.weight_block
    return bool(first.parts) and same


@lru_cache(maxsize=1 << 16)
def layer_cost(shape: LayerShape, stored_already: bool = False) -> LayerCost:
    """Cost of one layer under its policy.

    Args:
        shape: of the layer.
        stored_already: another layer holds the same weight, or the same table of several factors:
            neither its values nor its bytes count a second time.
    """
    policy, parts = shape.policy, shape.parts
    if stored_already:  # the table, whose rows a linear layer makes last
        parts = parts[1:] if shape.layer.kind == "embedding" else parts[:-1]
    weights = sum(part.weights for part in parts)
    macs = sum(part.macs for part in shape.parts)
    bits = policy.weight_bits * policy.activation_bits
    size = stored_bytes(weights, sum(part.rows for part in parts), policy) + 4 * shape.biases
    return LayerCost(macs, weights + shape.biases + shape.beside, size, macs * bits)


def stored_bytes(weights: int, channels: int, policy: LayerPolicy) -> int:
    """Bytes of a layer's weights on disk: in 32 bits, and what each technique makes of that."""
    size = 4 * weights
    for technique in techniques():
        if technique.active(policy):
            size = technique.stored_bytes(size, weights, channels, policy)
    return size


@dataclass(frozen=True)
class MacCount:
    """What fvcore counted.

    Args:
        total: multiply-adds per sample (fvcore calls them flops).
        per_layer: module name to its own.
        uncounted: operators that fvcore knows no formula for, with how often they ran.
        uncalled: modules that did not run.
    """

    total: int
    per_layer: dict[str, int]
    uncounted: dict[str, int]
    uncalled: tuple[str, ...]


def count_macs(model: nn.Module, example: Any) -> MacCount:
    """Count multiply-adds with fvcore on a batch of one.

    Args:
        model: in eval mode; not changed.
        example: one batch of inputs; only the first sample is used.
    """
    import logging
    import warnings

    with (
        warnings.catch_warnings()
    ):  # it scripts functions as it is imported, which torch deprecates
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    first = take(example, slice(0, 1))
    flat = Flat(model, first)
    analysis = FlopCountAnalysis(flat, tuple(tensors(first)))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    leaves = {n for n, m in model.named_modules() if not list(m.children())}
    counted = {flat.path(n): int(c) for n, c in analysis.by_module().items()}
    per_layer = {n: c for n, c in counted.items() if n in leaves and c}
    return MacCount(
        int(analysis.total()),
        per_layer,
        dict(analysis.unsupported_ops()),
        tuple(sorted(flat.path(n) for n in analysis.uncalled_modules())),
    )

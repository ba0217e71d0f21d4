"""From a policy to the quantities that its latency is a sum of: arithmetic on the inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.model.cost import layer_cost
from autocompress.model.kernels import Kernel, KernelPrecision, kernel_precision, part_kernel
from autocompress.model.shapes import LayerShape, layer_shape, resolver
from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import by_knob, techniques
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space

#: what a latency is a sum of, in the order of ``Row.features``, and of which kind each of them is
FEATURES = {
    "float_ms": "time",
    "int8_ms": "time",
    "dynamic_ms": "time",
    "half_ms": "time",
    "float_kernels": "node",
    "int8_kernels": "node",
    "float_outputs": "value",
    "int8_outputs": "value",
    "to_int8": "node",
    "to_int8_values": "change",
    "to_int8_far": "change",
    "to_float": "node",
    "to_float_values": "change",
    "to_float_far": "change",
    "float_adds": "value",
    "int8_adds": "value",
    "stored_int_weights": "value",
    "far_weights": "far",
    "other_macs": "macs",
}
#: which of them a kernel's time, count and outputs go to
_PLACES: dict[KernelPrecision, tuple[str, str, str]] = {
    "fp32": ("float_ms", "float_kernels", "float_outputs"),
    "int8": ("int8_ms", "int8_kernels", "int8_outputs"),
    "int8_dynamic": ("dynamic_ms", "float_kernels", "float_outputs"),
    "fp16": ("half_ms", "float_kernels", "float_outputs"),
}
#: values of one activation that a core's own cache still holds, 1 MiB as floats; what lies beyond
#: is read and written several times as slowly
_NEAR = 1 << 18
#: a network weighs up to about twice the table's footprint, a power of two: its times hold so far
_NEAR_FOOTPRINTS = 2
#: input widths of one layer that are timed; times between them are interpolated
_MOST_WIDTHS = 16


@dataclass(frozen=True, slots=True)
class LayerKernels:
    """What one layer runs as.

    Args:
        precision: of its arithmetic.
        kernels: one, or one for each of its factors; none for kinds that are not timed alone.
        outputs: values that all of them put out per sample.
        volume: values that the last of them puts out.
        stored: values of weights that are turned into floats at every inference.
        macs: multiply-adds of a layer without kernels.
    """

    precision: KernelPrecision
    kernels: tuple[Kernel, ...]
    outputs: int
    volume: int
    stored: int
    macs: int


@dataclass(frozen=True, slots=True)
class Row:
    """What the latency of one model is made of.

    Args:
        features: the quantities named in ``FEATURES``; values count in thousands, weights beyond
            the caches (``far_weights``) in MiB.
        kernels: key of each kernel, and the milliseconds that all of its uses sum up to.
    """

    features: NDArray[np.float64]
    kernels: Mapping[str, float]


class LayerPlan:
    """Everything about a model that the arithmetic needs, looked up once.

    Args:
        inventory: of the uncompressed model.
        settings: rounding of channel counts.
    """

    def __init__(self, inventory: Inventory, settings: CompressionSettings) -> None:
        self.inventory = inventory
        self.shapes = resolver(inventory, settings)

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Pairs of layers (producer, consumer) by position, the network's input being -1.

        A layer reads from the nearest earlier one that puts out channels of a group that feeds it
        (depthwise ones pass them on): one for each group behind a concatenation. Channels of no
        group come from the nearest layer whose outputs are in none, or are the network's input.
        """
        return self._between(frozenset())[0]

    @property
    def adds(self) -> list[tuple[int, int]]:
        """Residual additions as pairs of layers: the branch, and the stream's earlier producer."""
        return self._between(frozenset())[1]

    def _between(self, gone: frozenset[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Edges and additions that are left without some layers, given by position."""
        known: dict[frozenset[int], Any] = self.__dict__.setdefault("_without", {})
        if gone not in known:
            known[gone] = self._edges(gone), self._adds(gone)
        found: tuple[list[tuple[int, int]], list[tuple[int, int]]] = known[gone]
        return found

    def _edges(self, gone: frozenset[int]) -> list[tuple[int, int]]:
        nearest: dict[str | None, int] = {None: -1}
        found = []
        for i, layer in enumerate(self.inventory.layers):
            if i in gone:
                continue
            reads = self.inventory.reads(layer.name)
            groups: list[str | None] = [g.name for g, _ in reads]
            if sum(g.channels * span for g, span in reads) < layer.in_channels:
                groups.append(None)
            # what puts out a group may be no layer of the inventory: a transposed convolution
            before = next((j for j in range(i - 1, -1, -1) if j not in gone), -1)
            found += [(j, i) for j in sorted({nearest.get(g, before) for g in groups})]
            if not layer.depthwise:
                made = self.inventory.groups_by_name.get(layer.out_group or "")
                groups = [made.name if made is not None and made.consumers else None]
            nearest |= dict.fromkeys(groups, i)
        return found

    def _adds(self, gone: frozenset[int]) -> list[tuple[int, int]]:
        order = {layer.name: i for i, layer in enumerate(self.inventory.layers)}
        found = []
        for group in self.inventory.channel_groups:
            places = sorted(order[p] for p in group.producers if p in order)
            found += [(b, a) for a, b in pairwise(i for i in places if i not in gone)]
        return found

    def layers(self, policy: Policy) -> list[LayerKernels]:
        """What each layer runs as under a policy."""
        return [layer_kernels(shape) for shape in self.shapes.layers(policy)]

    def weight_bytes(self, policy: Policy) -> int:
        """Bytes that a policy's weights take in the runtime."""
        return sum(k.weight_bytes for layer in self.layers(policy) for k in layer.kernels)

    def kernels(self, policies: Iterable[Policy]) -> list[Kernel]:
        """All kernels that some policies need."""
        layers = (layer for policy in policies for layer in self.layers(policy))
        return list(dict.fromkeys(kernel for layer in layers for kernel in layer.kernels))

    def space_kernels(self, space: Space, limit: int = 6000) -> list[Kernel]:
        """All kernels of a space; an even spread of them where there are more than ``limit``.

        Behind a concatenation, where many widths are possible, an even spread of these.
        """
        found: dict[Kernel, None] = {}
        for layer in self.inventory.layers:
            timed = _timed_policies(space, layer.name, channels=False)
            for own, (inputs, outputs) in product(timed, list(self._space_widths(space, layer))):
                shape = layer_shape(layer, own, inputs, outputs)
                found.update(dict.fromkeys(layer_kernels(shape).kernels))
        kernels = list(found)
        return kernels[:: max(1, -(-len(kernels) // limit))]

    def _space_widths(self, space: Space, layer: LayerSpec) -> Iterator[tuple[int, int]]:
        """Pairs of input and output channels that a space may leave a layer."""
        reads = self.inventory.reads(layer.name)
        made = self.inventory.groups_by_name.get(layer.out_group or "")
        if layer.depthwise or made is None:
            for inputs in self._space_inputs(space, layer, dict.fromkeys(reads)):
                yield inputs, inputs if layer.depthwise else layer.out_channels
            return
        for outputs in self._counts(space, made):
            # a layer may read the channels that it puts out
            fixed = {(g, span): outputs if g is made else None for g, span in reads}
            for inputs in self._space_inputs(space, layer, fixed):
                yield inputs, layer.out_channels * outputs // made.channels

    def _space_inputs(
        self,
        space: Space,
        layer: LayerSpec,
        reads: Mapping[tuple[ChannelGroup, float], int | None],
    ) -> list[int]:
        """Input channels for every combination of the groups' levels, narrowest first."""
        found = {layer.in_channels}
        for (group, span), fixed in reads.items():
            counts = self._counts(space, group) if fixed is None else [fixed]
            found = {n - group.read_less(kept, span) for n in found for kept in counts}
        widths = sorted(found)
        if len(widths) <= _MOST_WIDTHS:
            return widths
        return [widths[i * (len(widths) - 1) // (_MOST_WIDTHS - 1)] for i in range(_MOST_WIDTHS)]

    def _counts(self, space: Space, group: ChannelGroup) -> list[int]:
        """Channels of a group that the space may leave."""
        policies = _timed_policies(space, group.producers[0], channels=True)
        return list(dict.fromkeys(self.shapes.count(group, policy) for policy in policies))

    def row(self, policy: Policy, table_ms: Callable[[Kernel], float], footprint: int) -> Row:
        """What the latency of a policy's model is made of.

        Args:
            policy: of the inventory's model.
            table_ms: from a kernel to milliseconds.
            footprint: bytes of weights that the kernels were timed among.
        """
        total = dict.fromkeys(FEATURES, 0.0)
        times: dict[str, float] = {}
        weight = 0
        layers = self.layers(policy)
        for layer in layers:
            time, count, outputs = _PLACES[layer.precision]
            for kernel in layer.kernels:
                ms = table_ms(kernel)
                times[kernel.key] = times.get(kernel.key, 0.0) + ms
                total[time] += ms
                weight += kernel.weight_bytes
            total[count] += len(layer.kernels)
            total[outputs] += layer.outputs * 1e-3
            total["stored_int_weights"] += layer.stored * 1e-3
            total["other_macs"] += layer.macs * 1e-6
        total["far_weights"] = max(0, weight - _NEAR_FOOTPRINTS * footprint) / 2**20
        self._add_boundaries(total, policy, layers)
        return Row(np.array(list(total.values())), times)

    def _add_boundaries(
        self, total: dict[str, float], policy: Policy, layers: Sequence[LayerKernels]
    ) -> None:
        """Count what goes from integers to floats or back, and additions by what they add."""
        image = sum(map(prod, self.inventory.input_shape))
        # the last entry is the network's input, which edges call -1
        integer = [*(layer.precision == "int8" for layer in layers), False]
        values = [*(layer.volume for layer in layers), image]
        gone = frozenset(i for i, shape in enumerate(self.shapes.layers(policy)) if not shape.parts)
        edges, adds = self._between(gone)
        for source, sink in edges:
            if integer[source] != integer[sink]:
                change = "to_int8" if integer[sink] else "to_float"
                total[change] += 1
                total[f"{change}_values"] += values[source] * 1e-3
                total[f"{change}_far"] += max(0, values[source] - _NEAR) * 1e-3
        last = next((i for i in range(len(layers) - 1, -1, -1) if i not in gone), -1)
        if integer[last]:
            total["to_float"] += 1
        for branch, stream in adds:
            both = integer[branch] and integer[stream]
            total["int8_adds" if both else "float_adds"] += values[branch] * 1e-3


@lru_cache(maxsize=1 << 16)
def layer_kernels(shape: LayerShape) -> LayerKernels:
    """What a layer runs as under its policy."""
    precision = kernel_precision(shape.policy)
    if not shape.parts:
        return LayerKernels(precision, (), 0, 0, 0, 0)
    timed = [(p, k) for p in shape.parts if (k := part_kernel(p, precision)) is not None]
    kernels = tuple(kernel for _, kernel in timed)
    last = shape.parts[-1]
    # an attention puts out as wide a stream as it reads, however many heads are left
    width = shape.layer.out_channels if shape.layer.kind == "attention" else last.outputs
    stored = any(t.active(shape.policy) and t.unpacks(shape.policy) for t in techniques())
    return LayerKernels(
        precision,
        kernels,
        outputs=sum(part.outputs * part.positions for part, _ in timed),
        volume=width * last.positions,
        stored=sum(kernel.weights for kernel in kernels) if stored else 0,
        macs=0 if kernels else layer_cost(shape).macs,
    )


def _timed_policies(space: Space, layer: str, *, channels: bool) -> list[LayerPolicy]:
    """What a space lets a layer be, as far as runtimes gain time by it.

    Args:
        space: of the study.
        layer: its name.
        channels: by techniques that remove channels, or by the others.
    """
    sets = []
    for choice in space.choices:
        technique = by_knob().get(choice.kind)
        if technique is None or layer not in choice.layers:
            continue
        if (technique.stage == "channels") is channels and technique.timed_levels(2):
            sets.append(choice.levels)
    found = []
    for levels in product(*sets):
        found.append(LayerPolicy.from_dict({k: v for level in levels for k, v in level.items()}))
    return found

"""What a policy costs, by formula; and what fvcore counts on a real module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from autocompress.policy.inventory import Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings

CONTAINER_BYTES = 2048
"""What an ONNX file spends beside the weights: the graph's own text, roughly."""


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
        params: weights and biases of the listed layers; norms are folded or negligible.
        size_bytes: of those weights as they would be stored: integers with one scale per output
            channel, sparse weights as a bitmap and their values.
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
    kept = kept_channels(inventory, policy, settings)
    known = _layer_costs(inventory)
    macs = params = size = bops = 0
    for layer in inventory.layers:
        own, (inputs, outputs) = policy[layer.name], sides(inventory, layer, kept)
        key = (layer.name, own, inputs, outputs)
        cost = known.get(key)
        if cost is None:
            cost = known[key] = layer_cost(layer, own, inputs, outputs)
        macs += cost.macs
        params += cost.params
        size += cost.size_bytes
        bops += cost.bops
    return Cost(macs, params, size + CONTAINER_BYTES, bops)


def kept_channels(
    inventory: Inventory, policy: Policy, settings: CompressionSettings
) -> dict[str, int]:
    """Group name to the channels that a policy keeps."""
    return {
        g.name: g.kept(policy[g.producers[0]].prune_ratio, settings.channel_multiple)
        for g in inventory.channel_groups
    }


def sides(inventory: Inventory, layer: LayerSpec, kept: dict[str, int]) -> tuple[int, int]:
    """Input and output channels of a layer once its groups are pruned."""
    inputs = layer.in_channels
    for group, span in _feeding(inventory).get(layer.name, ()):
        inputs -= (inventory.groups_by_name[group].channels - kept[group]) * span
    if layer.depthwise:
        return inputs, inputs
    return inputs, kept[layer.out_group] if layer.out_group else layer.out_channels


def _layer_costs(inventory: Inventory) -> dict[tuple[str, LayerPolicy, int, int], LayerCost]:
    """Those computed so far; a search asks thousands of times for the same few."""
    found: dict[tuple[str, LayerPolicy, int, int], LayerCost]
    found = inventory.__dict__.setdefault("_layer_costs", {})
    return found


def _feeding(inventory: Inventory) -> dict[str, list[tuple[str, int]]]:
    cached = inventory.__dict__.get("_feeding")
    if cached is None:
        cached = {}
        for group in inventory.channel_groups:
            for consumer, span in group.spans:
                cached.setdefault(consumer, []).append((group.name, span))
        inventory.__dict__["_feeding"] = cached
    return cached  # type: ignore[no-any-return]  # read from __dict__, which holds anything


def layer_cost(layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int) -> LayerCost:
    """Cost of one layer at given widths.

    Args:
        layer: as in the inventory.
        policy: bits, rank and sparsity are read; widths come from the arguments.
        inputs, outputs: channels after pruning.
    """
    if layer.kind in ("conv", "linear"):
        kernel = math.prod(layer.kernel_size) if layer.kernel_size else 1
        fan_in = (1 if layer.depthwise else inputs // layer.conv_groups) * kernel
        dense = outputs * fan_in
        biases = layer.params - layer.out_channels * (
            (1 if layer.depthwise else layer.in_channels // layer.conv_groups) * kernel
        )
        bias = outputs if biases else 0
        weights, macs = dense, layer.positions * dense
        if policy.rank_ratio is not None:
            weights, macs = factor_cost(layer, policy, inputs, outputs)
    elif layer.kind in ("lstm", "gru"):
        weights = _recurrent_weights(layer, inputs, outputs)  # all are multiplied once per step
        macs = layer.positions * weights
        full = _recurrent_weights(layer, layer.in_channels, layer.out_channels)
        bias = (layer.params - full) * outputs // layer.out_channels
    elif layer.kind == "attention":  # heads go whole: projections and scores alike
        weights = 4 * layer.in_channels * outputs
        macs = layer.macs * outputs // layer.out_channels
        bias = _attention_rest(layer, outputs)
    else:
        weights, bias, macs = layer.params, 0, layer.macs
    size = stored_bytes(weights, outputs, policy) + 4 * bias
    bits = policy.weight_bits * policy.activation_bits
    return LayerCost(macs, weights + bias, size, macs * bits)


def _recurrent_weights(layer: LayerSpec, inputs: int, outputs: int) -> int:
    """Weights of all stacked layers and directions; a layer above the first reads all below it."""
    gates = 4 if layer.kind == "lstm" else 3
    hidden = outputs // layer.directions
    return gates * outputs * (inputs + hidden + (layer.depth - 1) * (outputs + hidden))


def _attention_rest(layer: LayerSpec, outputs: int) -> int:
    """Biases of an attention, and the table of relative positions where it has one."""
    width = layer.out_channels
    rest = layer.params - 4 * layer.in_channels * width
    kept_whole = min(rest, layer.in_channels)  # the output's bias is as wide as the stream
    return kept_whole + (rest - kept_whole) * outputs // width


def stored_bytes(weights: int, channels: int, policy: LayerPolicy) -> int:
    """Bytes of a layer's weights on disk.

    Integers carry a float scale per output channel. A sparse tensor is a bitmap of one bit per
    weight and the values that are left; it is stored dense where that is smaller.
    """
    bits = policy.weight_bits
    dense = math.ceil(weights * bits / 8) + (4 * channels if bits < 16 else 0)
    if policy.sparsity == 0:
        return dense
    left = weights - int(weights * policy.sparsity)
    sparse = (
        math.ceil(weights / 8) + math.ceil(left * bits / 8) + (4 * channels if bits < 16 else 0)
    )
    return min(dense, sparse)


def break_even_rank(layer: LayerSpec, inputs: int, outputs: int, method: str) -> float:
    """Rank at which the factorized layer has as many multiply-adds as the dense one.

    Args:
        layer: a convolution with one group, or a linear layer.
        inputs, outputs: channels after pruning.
        method: ``svd`` (a k x k layer with r outputs, then 1x1), ``spatial`` (k x 1, then 1 x k)
            or ``tucker2`` (1x1, k x k, 1x1; inner ranks are this share of both sides).
    """
    kernel = math.prod(layer.kernel_size) if layer.kernel_size else 1
    dense = inputs * outputs * kernel
    if method == "spatial" and len(layer.kernel_size) == 2:
        height, width = layer.kernel_size
        stretch = layer.stride[1]  # the first part runs before the columns are strided away
        return dense / (inputs * height * stretch + outputs * width)
    if method == "tucker2":
        # a r i s^2 + k a b i o + b o with a = b = t, solved for the share t of both sides
        stretch = math.prod(layer.stride) if layer.stride else 1
        a, b = inputs * outputs * kernel, inputs * inputs * stretch + outputs * outputs
        share = (-b + math.sqrt(b * b + 4 * a * dense)) / (2 * a)
        return share * outputs
    return dense / (inputs * kernel + outputs)


def factor_method(layer: LayerSpec, policy: LayerPolicy) -> str:
    """Which factors a policy's ``auto`` stands for."""
    pointwise = math.prod(layer.kernel_size or (1,)) == 1
    if pointwise or len(layer.kernel_size) != 2:
        return "svd"
    return "svd" if policy.factorization == "auto" else policy.factorization


def factor_ranks(
    layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int
) -> tuple[int, ...]:
    """Inner widths of a factorized layer, each at least 1."""
    assert policy.rank_ratio is not None
    method = factor_method(layer, policy)
    edge = break_even_rank(layer, inputs, outputs, method)
    if method == "tucker2":
        share = policy.rank_ratio * edge / outputs
        return max(1, int(share * inputs)), max(1, int(share * outputs))
    return (max(1, int(policy.rank_ratio * edge)),)


def factor_cost(
    layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int
) -> tuple[int, int]:
    """Weights and multiply-adds of a factorized layer."""
    method = factor_method(layer, policy)
    ranks = factor_ranks(layer, policy, inputs, outputs)
    kernel = math.prod(layer.kernel_size) if layer.kernel_size else 1
    if method == "svd":
        weights = ranks[0] * (inputs * kernel + outputs)
        return weights, layer.positions * weights
    if method == "spatial":
        height, width = layer.kernel_size
        first, second = ranks[0] * inputs * height, ranks[0] * outputs * width
        # the first part keeps every column of the input
        return first + second, layer.positions * (first * layer.stride[1] + second)
    first, core, last = (inputs * ranks[0], ranks[0] * ranks[1] * kernel, ranks[1] * outputs)
    macs = layer.positions * (first * math.prod(layer.stride) + core + last)
    return first + core + last, macs


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
        example: one batched input, or a tuple; only the first sample is used.
    """
    import logging

    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    inputs = tuple(x[:1] for x in (example if isinstance(example, tuple) else (example,)))
    analysis = FlopCountAnalysis(model, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    leaves = {n for n, m in model.named_modules() if not list(m.children())}
    per_layer = {n: int(c) for n, c in analysis.by_module().items() if n in leaves and c}
    return MacCount(
        int(analysis.total()),
        per_layer,
        dict(analysis.unsupported_ops()),
        tuple(sorted(analysis.uncalled_modules())),
    )

"""From a policy to the quantities that its latency is a sum of: arithmetic on the inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from math import prod

import numpy as np
from numpy.typing import NDArray

from autocompress.model.cost import factor_method, factor_ranks
from autocompress.model.kernels import Kernel, KernelPrecision, kernel_precision, layer_kernel
from autocompress.policy.inventory import Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space

#: what a latency is a sum of, in the order of ``Row.features``
FEATURES = (
    "float_ms",
    "int8_ms",
    "dynamic_ms",
    "half_ms",
    "float_kernels",
    "int8_kernels",
    "float_outputs",
    "int8_outputs",
    "to_int8",
    "to_int8_values",
    "to_int8_far",
    "to_float",
    "to_float_values",
    "to_float_far",
    "float_adds",
    "int8_adds",
    "stored_int_weights",
    "far_weights",
    "other_macs",
)
#: values of one activation that a core's own cache still holds, 1 MiB as floats; what lies beyond
#: is read and written several times as slowly
_NEAR = 1 << 18
#: a network weighs up to about twice the table's footprint, a power of two: its times hold so far
_NEAR_FOOTPRINTS = 2
_INDEX = {name: i for i, name in enumerate(FEATURES)}


@dataclass(frozen=True, slots=True)
class Part:
    """One kernel that a layer becomes, and how many values it puts out per sample."""

    kernel: Kernel
    outputs: int
    weights: int


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
        self.settings = settings
        self._kept: dict[tuple[str, float], int] = {}
        self._parts: dict[tuple[int, int, int, LayerPolicy], list[Part]] = {}

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """Pairs of layers (producer, consumer) by position, the network's input being -1.

        The inventory tells which group of channels feeds a layer; of the layers that put these
        channels out (depthwise ones pass them on) the nearest earlier one is taken, and the
        previous layer where the channels are in no group.
        """
        layers = self.inventory.layers
        found = []
        for i, layer in enumerate(layers):
            source = i - 1
            if layer.in_group in self.inventory.groups_by_name:
                earlier = [j for j in range(i) if layers[j].out_group == layer.in_group]
                source = max(earlier, default=i - 1)
            found.append((source, i))
        return found

    @cached_property
    def adds(self) -> list[tuple[int, int]]:
        """Residual additions as pairs of layers: the branch, and the stream's earlier producer."""
        order = {layer.name: i for i, layer in enumerate(self.inventory.layers)}
        found = []
        for group in self.inventory.channel_groups:
            producers = sorted(order[p] for p in group.producers)
            layers = self.inventory.layers
            # depthwise layers pass channels on, they add nothing up
            producers = [p for p in producers if not layers[p].depthwise]
            found += [(b, a) for a, b in pairwise(producers)]
        return found

    def widths(self, layer: LayerSpec, policy: Policy) -> tuple[int, int]:
        """Input and output channels that a policy leaves a layer."""
        return (
            self._width(layer.in_group, layer.in_channels, policy),
            self._width(layer.out_group, layer.out_channels, policy),
        )

    def _width(self, group_name: str | None, channels: int, policy: Policy) -> int:
        group = self.inventory.groups_by_name.get(group_name) if group_name else None
        if group is None:
            return channels
        ratio = policy[group.producers[0]].prune_ratio
        key = (group.name, ratio)
        if key not in self._kept:
            self._kept[key] = group.kept(ratio, self.settings.channel_multiple)
        # a flattened image feeds a linear layer with several features per channel
        return max(1, channels * self._kept[key] // group.channels)

    def parts(self, layer: LayerSpec, policy: Policy) -> list[Part]:
        """The kernels that a layer becomes: one, or several when it is factorized."""
        width_in, width_out = self.widths(layer, policy)
        own = policy[layer.name]
        key = (id(layer), width_in, width_out, own)
        found = self._parts.get(key)
        if found is None:
            found = self._parts[key] = layer_parts(layer, width_in, width_out, own)
        return found

    def weight_bytes(self, policy: Policy) -> int:
        """Bytes that a policy's weights take in the runtime."""
        layers = self.inventory.layers
        return sum(p.kernel.weight_bytes for x in layers for p in self.parts(x, policy))

    def kernels(self, policies: Iterable[Policy]) -> list[Kernel]:
        """All kernels that some policies need."""
        found: dict[Kernel, None] = {}
        for policy in policies:
            for layer in self.inventory.layers:
                found.update((part.kernel, None) for part in self.parts(layer, policy))
        return list(found)

    def space_kernels(self, space: Space, limit: int = 6000) -> list[Kernel]:
        """All kernels of a space; an even spread of them where there are more than ``limit``."""
        found: dict[Kernel, None] = {}
        for layer in self.inventory.layers:
            ins = self._levels(space, layer.in_group)
            outs = self._levels(space, layer.out_group)
            if layer.in_group == layer.out_group and layer.in_group is not None:
                pairs: Iterable[tuple[float, float]] = ((r, r) for r in outs)
            else:
                pairs = product(ins, outs)
            for own, (a, b) in product(_layer_levels(space, layer.name), pairs):
                width_in = self._at(layer.in_group, layer.in_channels, a)
                width_out = self._at(layer.out_group, layer.out_channels, b)
                for part in layer_parts(layer, width_in, width_out, own):
                    found[part.kernel] = None
        kernels = list(found)
        step = max(1, -(-len(kernels) // limit))
        return kernels[::step]

    def _levels(self, space: Space, group: str | None) -> list[float]:
        i = space.index.get(f"{group}/prune_ratio")
        if i is None:
            return [0.0]
        return [float(level["prune_ratio"]) for level in space.choices[i].levels]

    def _at(self, group: str | None, channels: int, ratio: float) -> int:
        if group is None or group not in self.inventory.groups_by_name:
            return channels
        probe = self.inventory.groups_by_name[group].producers[0]
        return self._width(group, channels, Policy({probe: LayerPolicy(prune_ratio=ratio)}))

    def row(self, policy: Policy, table_ms: Callable[[Kernel], float], footprint: int) -> Row:
        """What the latency of a policy's model is made of.

        Args:
            policy: of the inventory's model.
            table_ms: from a kernel to milliseconds.
            footprint: bytes of weights that the kernels were timed among.
        """
        # a list: single entries of an array take several times as long to add to
        out = [0.0] * len(FEATURES)
        times: dict[str, float] = {}
        all_parts = [self.parts(layer, policy) for layer in self.inventory.layers]
        classes: list[KernelPrecision] = []
        volumes: list[int] = []
        heavy = 0
        for layer, parts in zip(self.inventory.layers, all_parts, strict=True):
            own = policy[layer.name]
            precision = kernel_precision(own)
            classes.append(precision)
            volumes.append(parts[-1].outputs if parts else layer.out_channels * layer.positions)
            if not parts:
                share = self.widths(layer, policy)[1] / layer.out_channels
                out[_INDEX["other_macs"]] += layer.macs * share * 1e-6
            time, count, outputs = _PLACES[precision]
            stored = own.weight_bits < 16 and precision == "fp32"
            for part in parts:
                kernel = part.kernel
                ms = table_ms(kernel)
                times[kernel.key] = times.get(kernel.key, 0.0) + ms
                heavy += kernel.weight_bytes
                out[time] += ms
                out[count] += 1
                out[outputs] += part.outputs * 1e-3
                if stored:
                    out[_INDEX["stored_int_weights"]] += part.weights * 1e-3
        self._boundaries(out, classes, volumes)
        out[_INDEX["far_weights"]] = max(0, heavy - _NEAR_FOOTPRINTS * footprint) / 2**20
        return Row(np.array(out), times)

    def _boundaries(self, out: list[float], classes: Sequence[str], volumes: Sequence[int]) -> None:
        for source, sink in self.edges:
            before = classes[source] == "int8" if source >= 0 else False
            after = classes[sink] == "int8"
            if before == after:
                continue
            name = "to_int8" if after else "to_float"
            values = volumes[source] if source >= 0 else self._input_values
            out[_INDEX[name]] += 1
            out[_INDEX[f"{name}_values"]] += values * 1e-3
            out[_INDEX[f"{name}_far"]] += max(0, values - _NEAR) * 1e-3
        if classes and classes[-1] == "int8":
            out[_INDEX["to_float"]] += 1
        for branch, stream in self.adds:
            both = classes[branch] == classes[stream] == "int8"
            out[_INDEX["int8_adds" if both else "float_adds"]] += volumes[branch] * 1e-3

    @cached_property
    def _input_values(self) -> int:
        return int(sum(np.prod(shape) for shape in self.inventory.input_shape))


_TIME_OF: dict[KernelPrecision, str] = {
    "fp32": "float_ms",
    "int8": "int8_ms",
    "int8_dynamic": "dynamic_ms",
    "fp16": "half_ms",
}
_PLACES = {
    precision: (
        _INDEX[time],
        _INDEX["int8_kernels" if precision == "int8" else "float_kernels"],
        _INDEX["int8_outputs" if precision == "int8" else "float_outputs"],
    )
    for precision, time in _TIME_OF.items()
}
"""Where a kernel's time, count and output values go."""


def layer_parts(layer: LayerSpec, width_in: int, width_out: int, own: LayerPolicy) -> list[Part]:
    """The kernels of one layer at given widths: one, or one for each of its factors.

    Args:
        layer: of the uncompressed model.
        width_in, width_out: channels left.
        own: its policy; the prune ratio is not read.
    """
    precision = kernel_precision(own)
    found = []
    for spec, inputs, outputs in _factors(layer, width_in, width_out, own):
        kernel = layer_kernel(spec, inputs, outputs, precision)
        if kernel is not None:
            weights = kernel.macs // max(1, spec.positions)
            found.append(Part(kernel, outputs * spec.positions, weights))
    return found


def _factors(
    layer: LayerSpec, width_in: int, width_out: int, own: LayerPolicy
) -> list[tuple[LayerSpec, int, int]]:
    """The layers that run in a layer's place, each with its input and output channels."""
    if own.rank_ratio is None:
        return [(layer, width_in, width_out)]
    ranks = factor_ranks(layer, own, width_in, width_out)
    method = factor_method(layer, own)
    if layer.kind == "linear":
        return [(layer, width_in, ranks[0]), (layer, ranks[0], width_out)]
    stride = layer.stride or (1,) * len(layer.kernel_size)
    ones = (1,) * len(layer.kernel_size)
    point = replace(layer, kernel_size=ones, stride=ones)
    if method == "spatial":
        (height, width), (down, right) = layer.kernel_size, stride
        column = replace(
            layer,
            kernel_size=(height, 1),
            stride=(down, 1),
            positions=layer.positions * right,
        )
        row = replace(layer, kernel_size=(1, width), stride=(1, right))
        return [(column, width_in, ranks[0]), (row, ranks[0], width_out)]
    if method == "tucker2":
        before = replace(point, positions=layer.positions * prod(stride))
        return [
            (before, width_in, ranks[0]),
            (layer, ranks[0], ranks[1]),
            (point, ranks[1], width_out),
        ]
    return [(layer, width_in, ranks[0]), (point, ranks[0], width_out)]


def _layer_levels(space: Space, name: str) -> list[LayerPolicy]:
    """Combinations of the bits and ranks that the space lets a layer have."""
    sets = []
    for kind in ("bits", "rank_ratio"):
        i = space.index.get(f"{name}/{kind}")
        sets.append([{}] if i is None else list(space.choices[i].levels))
    return [LayerPolicy(**{**a, **b}) for a, b in product(*sets)]

"""From a policy to the quantities that its latency is a sum of: arithmetic on the inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from autocompress.model.cost import layer_cost
from autocompress.model.kernels import Kernel, KernelPrecision, kernel_precision, part_kernel
from autocompress.model.shapes import LayerShape, layer_shape, resolver
from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
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
#: input widths of one layer that are timed; times between them are interpolated
_MOST_WIDTHS = 16
_INDEX = {name: i for i, name in enumerate(FEATURES)}
_TO_INT8 = tuple(_INDEX[f"to_int8{part}"] for part in ("", "_values", "_far"))
_TO_FLOAT = tuple(_INDEX[f"to_float{part}"] for part in ("", "_values", "_far"))
_STORED, _OTHER = _INDEX["stored_int_weights"], _INDEX["other_macs"]


@dataclass(frozen=True, slots=True)
class LayerKernels:
    """What one layer runs as.

    Args:
        precision: of its arithmetic.
        kernels: one, or one for each of its factors; none for kinds that are not timed alone.
        outputs: values that all of them put out per sample.
        volume: values that the last of them puts out.
        stored: values of integer weights that are computed with in float.
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

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """Pairs of layers (producer, consumer) by position, the network's input being -1.

        A layer reads from the nearest earlier one that puts out channels of a group that feeds it
        (depthwise ones pass them on): one for each group behind a concatenation. Channels of no
        group come from the nearest layer whose outputs are in none, or are the network's input.
        """
        nearest: dict[str | None, int] = {None: -1}
        found = []
        for i, layer in enumerate(self.inventory.layers):
            reads = self.inventory.reads(layer.name)
            groups: list[str | None] = [g.name for g, _ in reads]
            if sum(g.channels * span for g, span in reads) < layer.in_channels:
                groups.append(None)
            # what puts out a group may be no layer of the inventory: a transposed convolution
            found += [(j, i) for j in sorted({nearest.get(g, i - 1) for g in groups})]
            if not layer.depthwise:
                made = self.inventory.groups_by_name.get(layer.out_group or "")
                groups = [made.name if made is not None and made.consumers else None]
            nearest |= dict.fromkeys(groups, i)
        return found

    @cached_property
    def adds(self) -> list[tuple[int, int]]:
        """Residual additions as pairs of layers: the branch, and the stream's earlier producer."""
        order = {layer.name: i for i, layer in enumerate(self.inventory.layers)}
        found = []
        for group in self.inventory.channel_groups:
            producers = sorted(order[p] for p in group.producers if p in order)
            found += [(b, a) for a, b in pairwise(producers)]
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
            widths = list(self._space_widths(space, layer))
            for own, (inputs, outputs) in product(_layer_levels(space, layer.name), widths):
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
        place = space.index.get(f"{group.name}/prune_ratio")
        if place is None:
            return [group.channels]
        ratios = [float(level["prune_ratio"]) for level in space.choices[place].levels]
        return list(dict.fromkeys(self.shapes.count(group, ratio) for ratio in ratios))

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
        heavy = 0
        layers = self.layers(policy)
        for layer in layers:
            time, count, outputs = _PLACES[layer.precision]
            for kernel in layer.kernels:
                ms = table_ms(kernel)
                times[kernel.key] = times.get(kernel.key, 0.0) + ms
                heavy += kernel.weight_bytes
                out[time] += ms
            out[count] += len(layer.kernels)
            out[outputs] += layer.outputs * 1e-3
            out[_STORED] += layer.stored * 1e-3
            out[_OTHER] += layer.macs * 1e-6
        self._boundaries(out, layers)
        out[_INDEX["far_weights"]] = max(0, heavy - _NEAR_FOOTPRINTS * footprint) / 2**20
        return Row(np.array(out), times)

    def _boundaries(self, out: list[float], layers: Sequence[LayerKernels]) -> None:
        integer = [layer.precision == "int8" for layer in layers]
        for source, sink in self.edges:
            before = integer[source] if source >= 0 else False
            after = integer[sink]
            if before == after:
                continue
            count, thousands, far = _TO_INT8 if after else _TO_FLOAT
            values = layers[source].volume if source >= 0 else self._input_values
            out[count] += 1
            out[thousands] += values * 1e-3
            out[far] += max(0, values - _NEAR) * 1e-3
        if integer and integer[-1]:
            out[_TO_FLOAT[0]] += 1
        for branch, stream in self.adds:
            both = integer[branch] and integer[stream]
            out[_INDEX["int8_adds" if both else "float_adds"]] += layers[branch].volume * 1e-3

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


@lru_cache(maxsize=1 << 16)
def layer_kernels(shape: LayerShape) -> LayerKernels:
    """What a layer runs as under its policy."""
    precision = kernel_precision(shape.policy)
    timed = [(p, k) for p in shape.parts if (k := part_kernel(p, precision)) is not None]
    kernels = tuple(kernel for _, kernel in timed)
    last = shape.parts[-1]
    # an attention puts out as wide a stream as it reads, however many heads are left
    width = shape.layer.out_channels if shape.layer.kind == "attention" else last.outputs
    stored = shape.policy.weight_bits < 16 and precision == "fp32"
    return LayerKernels(
        precision,
        kernels,
        outputs=sum(part.outputs * part.positions for part, _ in timed),
        volume=width * last.positions,
        stored=sum(kernel.weights for kernel in kernels) if stored else 0,
        macs=0 if kernels else layer_cost(shape).macs,
    )


def _layer_levels(space: Space, name: str) -> list[LayerPolicy]:
    """Combinations of the bits and ranks that the space lets a layer have."""
    sets = []
    for kind in ("bits", "rank_ratio"):
        i = space.index.get(f"{name}/{kind}")
        sets.append([{}] if i is None else list(space.choices[i].levels))
    return [LayerPolicy(**{**a, **b}) for a, b in product(*sets)]

"""From a policy to the quantities that its latency is a sum of: arithmetic on the inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from itertools import pairwise, product
from math import prod
from typing import Any

from autocompress.estimate.latency_row import FEATURES, LayerKernels, Row, RowSum
from autocompress.model.cost import layer_cost
from autocompress.model.kernels import Kernel, kernel_precision, part_kernel
from autocompress.model.shapes import LayerShape, layer_shape, resolver
from autocompress.policy.inventory import ChannelGroup, Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import by_knob, techniques
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space

#: input widths of one layer that are timed; times between them are interpolated
_MOST_WIDTHS = 16


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
            widths = self.shapes.widths(layer.name, partial(self._counts, space), _MOST_WIDTHS)
            for own, (inputs, outputs) in product(timed, widths):
                shape = layer_shape(layer, own, inputs, outputs)
                found.update(dict.fromkeys(layer_kernels(shape).kernels))
        kernels = list(found)
        return kernels[:: max(1, -(-len(kernels) // limit))]

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
        return self._sum(self.shapes.layers(policy), table_ms).row(footprint)

    def row_changes(
        self, policy: Policy, table_ms: Callable[[Kernel], float], footprint: int
    ) -> Callable[[Mapping[int, LayerShape]], Row]:
        """What policies that differ from one in a few layers add to its row.

        Args:
            policy, table_ms, footprint: as in ``row``.

        Returns:
            From what ``Resolver.changes`` finds to a row of differences.
        """
        shapes = self.shapes.layers(policy)
        whole = self._sum(shapes, table_ms)
        own = whole.row(footprint)
        edges, adds = self._between(_gone(shapes))
        touching = _by_place(edges), _by_place(adds)

        def changed(found: Mapping[int, LayerShape]) -> Row:
            if any(bool(shape.parts) != bool(shapes[i].parts) for i, shape in found.items()):
                now = [found.get(i, shape) for i, shape in enumerate(shapes)]
                return self._sum(now, table_ms).row(footprint).minus(own)
            edges, adds = ({pair for i in found for pair in pairs.get(i, ())} for pairs in touching)
            new = RowSum(self._image, dict(whole.total), {}, whole.weight)
            for sign, given in ((-1, {}), (1, found)):
                near = {*found, *(i for pair in (*edges, *adds) for i in pair if i >= 0)}
                at = {i: layer_kernels(given.get(i, shapes[i])) for i in near}
                new.add_layers((at[i] for i in found), table_ms, sign)
                new.add_boundaries(edges, adds, at.__getitem__, sign)
                if whole.last in found:
                    new.add_end(at[whole.last], sign)
            row = new.row(footprint)
            return Row(row.features - own.features, row.kernels)

        return changed

    @cached_property
    def _image(self) -> int:
        """Values of the network's input."""
        return sum(map(prod, self.inventory.input_shape))

    def _sum(self, shapes: Sequence[LayerShape], table_ms: Callable[[Kernel], float]) -> RowSum:
        gone = _gone(shapes)
        layers = [layer_kernels(shape) for shape in shapes]
        last = next((i for i in range(len(layers) - 1, -1, -1) if i not in gone), -1)
        found = RowSum(self._image, dict.fromkeys(FEATURES, 0.0), {}, 0, last)
        found.add_layers(layers, table_ms)
        found.add_boundaries(*self._between(gone), layers.__getitem__)
        if last >= 0:
            found.add_end(layers[last])
        return found


def _gone(shapes: Iterable[LayerShape]) -> frozenset[int]:
    """Places of layers that are left out."""
    return frozenset(i for i, shape in enumerate(shapes) if not shape.parts)


def _by_place(pairs: Iterable[tuple[int, int]]) -> dict[int, list[tuple[int, int]]]:
    """Pairs of places by either of them."""
    found: dict[int, list[tuple[int, int]]] = {}
    for pair in pairs:
        for place in {*pair}:
            found.setdefault(place, []).append(pair)
    return found


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
    first = space.inventory.by_name[layer].tied_to
    for choice in space.choices:
        technique = by_knob().get(choice.kind)
        if technique is None:
            continue
        given = technique.of_first and first in choice.layers
        if layer not in choice.layers and not given:
            continue
        if (technique.stage == "channels") is channels and technique.timed_levels(2):
            sets.append(choice.levels)
    found = []
    for levels in product(*sets):
        found.append(LayerPolicy.from_dict({k: v for level in levels for k, v in level.items()}))
    return found

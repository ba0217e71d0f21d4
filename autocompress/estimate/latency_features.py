"""From a policy to the quantities that its latency is a sum of: arithmetic on the inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from itertools import product
from math import prod

from autocompress.estimate.boundaries import Boundaries, bit, floats
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
        self._without: dict[frozenset[int], Boundaries] = {}

    def boundaries(self, gone: frozenset[int]) -> Boundaries:
        """The values between layers that are left without some, given by place."""
        if gone not in self._without:
            self._without[gone] = Boundaries(self.inventory, gone)
        return self._without[gone]

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
        layers = [layer_kernels(shape) for shape in shapes]
        between, before = self.boundaries(_gone(shapes)), floats(layers)

        def changed(found: Mapping[int, LayerShape]) -> Row:
            if any(bool(shape.parts) != bool(shapes[i].parts) for i, shape in found.items()):
                now = [found.get(i, shape) for i, shape in enumerate(shapes)]
                return self._sum(now, table_ms).row(footprint).minus(own)
            given = {i: layer_kernels(shape) for i, shape in found.items()}
            flipped = (i for i in found if _integer(given[i]) != _integer(layers[i]))
            after = before ^ sum(map(bit, flipped))
            new = RowSum(self._image, dict(whole.total), {}, whole.weight)
            values = between.changed(found, before, after)
            for value in values:
                value.count(new, before, lambda i: layers[i].volume, -1)
                value.count(new, after, lambda i: given.get(i, layers[i]).volume)
            new.add_layers((layers[i] for i in found), table_ms, -1)
            new.add_layers(given.values(), table_ms)
            if whole.last in found:
                new.add_end(layers[whole.last], -1)
                new.add_end(given[whole.last])
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
        kind = floats(layers)
        for value in self.boundaries(gone).values:
            value.count(found, kind, lambda i: layers[i].volume)
        if last >= 0:
            found.add_end(layers[last])
        return found


def _gone(shapes: Iterable[LayerShape]) -> frozenset[int]:
    """Places of layers that are left out."""
    return frozenset(i for i, shape in enumerate(shapes) if not shape.parts)


def _integer(layer: LayerKernels) -> bool:
    return layer.precision == "int8"


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

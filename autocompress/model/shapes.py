"""The one resolver: which shapes a policy leaves of every layer, by arithmetic on the inventory.

Cost, latency and the layer bank read these shapes; none of them counts channels or ranks itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from autocompress.errors import PolicyError
from autocompress.model.part import Part, biases, whole
from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import techniques
from autocompress.policy.settings import CompressionSettings


@dataclass(frozen=True, slots=True, eq=False)
class LayerShape:
    """One layer under a policy. A resolver gives the same object for the same case.

    Args:
        layer: of the uncompressed model.
        policy: the layer's own.
        inputs, outputs: channels that are left.
        parts: the modules that run in the layer's place, in their order; one, or its factors, or
            none where the layer is gone.
    """

    layer: LayerSpec
    policy: LayerPolicy
    inputs: int
    outputs: int
    parts: tuple[Part, ...]

    @property
    def biases(self) -> int:
        """Parameters beside the weights of its parts."""
        return biases(self.layer, self.outputs) if self.parts else 0

    @property
    def beside(self) -> int:
        """Parameters that no layer holds, and that are there with this one."""
        layer = self.layer
        return layer.beside + round(layer.beside_each * self.outputs) if self.parts else 0


def layer_shape(layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int) -> LayerShape:
    """One layer at given widths.

    Args:
        layer: of the uncompressed model.
        policy: its own; the prune ratio is not read, and a rank only where it can be factorized.
        inputs, outputs: channels that are left.
    """
    if policy.integer and not layer.integer:
        policy = replace(policy, activation_bits=32)  # its inputs stay float, where they are any
    for technique in techniques():
        if technique.active(policy):
            parts = technique.parts(layer, policy, inputs, outputs)
            if parts is not None:
                return LayerShape(layer, policy, inputs, outputs, parts)
    return LayerShape(layer, policy, inputs, outputs, (whole(layer, inputs, outputs),))


class Resolver:
    """From policies on one model to shapes; see ``resolver``.

    Args:
        inventory: of the uncompressed model.
        channel_multiple: what kept channels are rounded to.
    """

    def __init__(self, inventory: Inventory, channel_multiple: int) -> None:
        self.inventory = inventory
        self._multiple = channel_multiple
        self._counts: dict[tuple[str, LayerPolicy], tuple[int, bool]] = {}
        # a search asks thousands of times for the same few shapes of a layer
        self._steps = [
            (
                layer,
                inventory.reads(layer.name),
                inventory.groups_by_name.get(layer.out_group or ""),
                dict[tuple[LayerPolicy, int, int], LayerShape](),
            )
            for layer in inventory.layers
        ]
        self._places = {layer.name: i for i, layer in enumerate(inventory.layers)}
        self._last: tuple[Policy, tuple[LayerShape, ...]] = (Policy(), self._resolve(Policy()))

    def count(self, group: ChannelGroup, policy: LayerPolicy) -> int:
        """Channels of a group that stay where its layers share a policy."""
        return self._left(group, policy)[0]

    def _left(self, group: ChannelGroup, policy: LayerPolicy) -> tuple[int, bool]:
        """The same, and whether heads get narrower: the technique that keeps the fewest decides.

        Raises:
            PolicyError: it keeps a number that cannot be cut.
        """
        found = self._counts.get((group.name, policy))
        if found is None:
            each = {t: t.kept(group, policy, self._multiple) for t in techniques()}
            first = min(each, key=each.__getitem__)
            count = each[first]
            narrower = count < group.channels and first.narrows(group, policy)
            step = group.narrower if narrower else group.unit
            if not 0 < count <= group.channels or count % step:
                raise PolicyError(
                    f"The technique {first.name!r} keeps {count} of the {group.channels} channels "
                    f"of {group.name!r}, which go in steps of {step}. Its `kept` must give a "
                    "multiple of that, at least one; `group.kept` rounds so."
                )
            found = self._counts[group.name, policy] = count, narrower
        return found

    def kept(self, policy: Policy) -> Mapping[str, int]:
        """Group name to the channels that a policy keeps."""
        layers = policy.layers
        return {g.name: self._kept(g, layers.get) for g in self.inventory.channel_groups}

    def narrowed(self, policy: Policy) -> dict[str, int]:
        """Name of a group whose heads get narrower to the channels that each of them keeps."""
        each = ((g, _shared(g, policy.layers.get)) for g in self.inventory.channel_groups)
        left = ((g, self._left(g, own)) for g, own in each if own is not None)
        return {g.name: kept // g.narrower for g, (kept, narrower) in left if narrower}

    def _kept(self, group: ChannelGroup, of: Callable[[str], LayerPolicy | None]) -> int:
        own = _shared(group, of)
        return group.channels if own is None else self.count(group, own)

    def layers(self, policy: Policy) -> tuple[LayerShape, ...]:
        """The shape of every layer, in the order of the inventory.

        Args:
            policy: what is done; a ``student`` cannot be told from the inventory.
        """
        # cost and latency of a policy are asked for one after the other
        before, shapes = self._last
        if before is not policy:
            shapes = self._resolve(policy)
            self._last = (policy, shapes)
        return shapes

    def told(self, policy: Policy) -> dict[str, tuple[int, int]]:
        """Layer name to the output channels that it keeps, and those that it had.

        Layers that are as wide as before, and that nothing is done to, are left out; so are those
        that are gone.
        """
        return {
            shape.layer.name: (shape.outputs, shape.layer.out_channels)
            for shape in self.layers(policy)
            if not shape.policy.absent
            and (shape.outputs != shape.layer.out_channels or not shape.policy.identity)
        }

    def _resolve(self, policy: Policy) -> tuple[LayerShape, ...]:
        kept = self.kept(policy)
        each = enumerate(self.inventory.layers)
        return tuple(self._shape(i, self._own(layer, policy.layers.get), kept) for i, layer in each)

    def _own(self, layer: LayerSpec, of: Callable[[str], LayerPolicy | None]) -> LayerPolicy:
        """A layer's policy, with what the first holder of its weight says for all of them."""
        own = of(layer.name) or _IDENTITY
        first = None if layer.tied_to is None else of(layer.tied_to)
        return own if first is None or own.absent else _followed(own, first)

    def _shape(self, place: int, own: LayerPolicy, kept: Mapping[str, int]) -> LayerShape:
        layer, reads, made, known = self._steps[place]
        inputs = layer.in_channels
        for group, span in reads:
            inputs -= group.read_less(kept[group.name], span)
        outputs = _outputs(layer, inputs, made, kept[made.name] if made is not None else 0)
        shape = known.get((own, inputs, outputs))
        if shape is None:
            shape = known[own, inputs, outputs] = layer_shape(layer, own, inputs, outputs)
        return shape

    def widths(
        self, layer: str, counts: Callable[[ChannelGroup], Sequence[int]], most: int
    ) -> list[tuple[int, int]]:
        """Pairs of input and output channels that a layer may be left with.

        Args:
            layer: its name.
            counts: channels that may stay of a group.
            most: so many input widths beside each output width; an even spread where there are
                more, as behind concatenations.
        """
        spec, reads, made, _ = self._steps[self._places[layer]]
        own = None if spec.depthwise else made
        found = []
        for kept in [0] if own is None else counts(own):
            inputs = {spec.in_channels}
            for group, span in reads:
                # a layer may read the channels that it puts out
                each = [kept] if group is own else counts(group)
                inputs = {n - group.read_less(count, span) for n in inputs for count in each}
            found += [(n, _outputs(spec, n, own, kept)) for n in _spread(sorted(inputs), most)]
        return found

    def changes(
        self, policy: Policy
    ) -> Callable[[Mapping[str, LayerPolicy]], dict[int, LayerShape]]:
        """Shapes of policies that differ from one in a few layers, in time of these alone.

        Args:
            policy: to start from; a ``student`` cannot be told from the inventory.

        Returns:
            From what is done to some layers instead to the places, in the order of the inventory,
            of all layers whose shape differs from the policy's, with their shapes.
        """
        shapes, kept, before = self.layers(policy), dict(self.kept(policy)), policy.layers

        def changed(layers: Mapping[str, LayerPolicy]) -> dict[int, LayerShape]:
            def of(name: str) -> LayerPolicy | None:
                return layers.get(name) or before.get(name)

            held = self.inventory.followers
            names = [*layers, *(other for name in layers for other in held.get(name, ()))]
            places = {self._places[name] for name in names}
            groups = {g.name: g for name in layers for g in self._made.get(name, ())}
            now = {name: self._kept(group, of) for name, group in groups.items()}
            for name, count in now.items():
                if count != kept[name]:
                    places |= self._touched[name]
            all_kept = {**kept, **now} if now else kept
            found = {}
            for i in places:
                shape = self._shape(i, self._own(shapes[i].layer, of), all_kept)
                if shape is not shapes[i]:
                    found[i] = shape
            return found

        return changed

    @cached_property
    def _made(self) -> Mapping[str, tuple[ChannelGroup, ...]]:
        """Layer name to the groups that it puts out, and so has a say in."""
        found: dict[str, tuple[ChannelGroup, ...]] = {}
        for group in self.inventory.channel_groups:
            for name in group.producers:
                found[name] = (*found.get(name, ()), group)
        return found

    @cached_property
    def _touched(self) -> Mapping[str, set[int]]:
        """Group name to the places of the layers whose widths it sets."""
        found: dict[str, set[int]] = {g.name: set() for g in self.inventory.channel_groups}
        for i, (_, reads, made, _) in enumerate(self._steps):
            for group in (*(g for g, _ in reads), *([made] if made is not None else [])):
                found[group.name].add(i)
        return found


def _shared(group: ChannelGroup, of: Callable[[str], LayerPolicy | None]) -> LayerPolicy | None:
    """The policy that the layers of a group share; of those that are gone none counts."""
    each = map(of, group.producers)
    return next((p for p in each if p is None or not p.absent), None)


_IDENTITY = LayerPolicy()


@lru_cache(maxsize=4096)
def _followed(own: LayerPolicy, first: LayerPolicy) -> LayerPolicy:
    """What holds for a layer whose weight another one holds first."""
    known = (t for t in techniques() if t.of_first and t.active(first))
    values = {f.name: first.value(f.name) for t in known for f in t.fields}
    return LayerPolicy.from_dict({**own.as_dict(), **values}) if values else own


def _outputs(layer: LayerSpec, inputs: int, made: ChannelGroup | None, kept: int) -> int:
    """Output channels of a layer; every producer of a group is thinned alike.

    Args:
        layer: of the uncompressed model.
        inputs: channels that it reads.
        made: the group that it puts out, if any.
        kept: channels of that.
    """
    if layer.depthwise:
        return inputs
    return layer.out_channels if made is None else layer.out_channels * kept // made.channels


def _spread(values: list[int], most: int) -> list[int]:
    """At most so many, both ends among them."""
    if len(values) <= most:
        return values
    return [values[i * (len(values) - 1) // (most - 1)] for i in range(most)]


def resolver(inventory: Inventory, settings: CompressionSettings) -> Resolver:
    """The resolver of a model, kept with its inventory.

    Args:
        inventory: of the uncompressed model.
        settings: ``channel_multiple`` rounds the kept channels.
    """
    known: dict[int, Resolver] = inventory.__dict__.setdefault("_resolvers", {})
    found = known.get(settings.channel_multiple)
    if found is None:
        found = known[settings.channel_multiple] = Resolver(inventory, settings.channel_multiple)
    return found

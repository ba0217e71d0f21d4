"""From followed channels to groups that one ratio can thin, and what each channel takes along."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from autocompress.model.call_sites import averages, code_of
from autocompress.model.channel_trace import CallSite, ChannelTrace, axis_classes, class_base
from autocompress.model.labels import Labels
from autocompress.model.sides import CallAxis, LayerSide, ModuleSide, OwnAxis, Side
from autocompress.policy.inventory import ChannelGroup

_OF_LAYERS: tuple[LayerSide, ...] = ("out", "in", "both")


@dataclass(frozen=True)
class Member:
    """One side of one module in a group.

    Args:
        module: dotted name of the module.
        side: of the module.
        index: per channel of the group, the module's indices that go with it.
    """

    module: str
    side: Side
    index: tuple[tuple[int, ...], ...]

    @property
    def reads(self) -> bool:
        """Whether these are inputs of a layer."""
        return self.side == "in"


FoundGroup = tuple[ChannelGroup, tuple[Member, ...], tuple[tuple[int, ...], ...]]


@dataclass
class Grouped:
    """All groups of a model.

    Args:
        groups: by name.
        skipped: first producer of what was left out, and why.
        producers: the same name to all its producers.
        sites: module and side of every call that gives channels, also of those that stay.
    """

    groups: dict[str, FoundGroup] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    producers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sites: tuple[ModuleSide, ...] = ()


def group_channels(trace: ChannelTrace) -> Grouped:
    """Sort followed channels into groups.

    Layers that make channels of one class share a ratio; channels that take different things
    along are put together in sets that all take the same, so that a ratio says how much goes.
    """
    classes, free = trace.atoms.classes(), trace.atoms.free_classes()
    reasons = trace.atoms.reasons()
    made: dict[str, list[int]] = {
        axis.module: classes[axis.atoms].tolist() for axis in trace.axes if axis.side == "out"
    }
    names = [name for name in trace.order if name in made]
    everywhere, tangles = _places(trace, free, {c for own in made.values() for c in own})
    residual = _residual(trace, classes)
    found = Grouped(sites=tuple(_sites(trace, free)))
    for producers in _together(names, made):
        name = producers[0]
        own = {c for producer in producers for c in made[producer]}
        if len(made[name]) < 2:
            continue
        found.producers[name] = tuple(producers)
        reason = next((r for c, r in (*reasons.items(), *tangles.items()) if c in own), "")
        sets = () if reason else _sets(own, everywhere, made[name])
        if not reason and len(sets) < 2:
            reason = _why_so_few(trace, classes, own, len(made[name]))
        consumers = _consumers(trace, own, everywhere)
        if not reason and not consumers:
            reason = "no layer reads these channels"
        if reason:
            found.skipped[name] = reason
            continue
        members, units = _members(sets, everywhere, name, len(made[name]))
        spans = _spans(members, units[0], trace.order)
        found.groups[name] = (
            ChannelGroup(
                name,
                tuple(producers),
                consumers,
                len(made[name]),
                len(units[0]),
                bool(own & residual),
                spans,
            ),
            members,
            units,
        )
        del found.producers[name]
    return found


def _places(
    trace: ChannelTrace, classes: Tensor, made: set[int]
) -> tuple[dict[int, dict[ModuleSide, list[int]]], dict[int, str]]:
    """Class to the indices that it takes at every place; and classes that lie along two axes."""
    relevant = dict.fromkeys(made)
    found: dict[int, dict[ModuleSide, list[int]]] = {c: {} for c in made}
    tangles: dict[int, str] = {}

    def note(place: ModuleSide, vector: Sequence[int]) -> None:
        for index, c in enumerate(vector):
            if c in relevant:
                into = found[c].setdefault(place, [])
                if index not in into:
                    into.append(index)

    for axis in trace.axes:
        note((axis.module, axis.side), classes[axis.atoms].tolist())
    for module, attribute, labels in trace.raw:
        along = axis_classes(classes, labels, relevant)
        if along is not None:
            note((module, OwnAxis(attribute, along[0])), along[1])
            continue
        base = class_base(classes, labels)
        if sum(size > 1 for size in base.shape) < 2:
            continue
        inside = set(base.unique().tolist()) & made
        own = f"{module}.{attribute}".strip(".")
        tangles |= dict.fromkeys(inside, f"the parameter {own} holds them along several axes")
    for site in trace.sites:
        for key, labels in site.tensors:
            along = axis_classes(classes, labels, relevant)
            if along is not None:
                note(call_side(site, key, along[0], labels), along[1])
    return found, tangles


def call_side(site: CallSite, key: str, axis: int, labels: Labels) -> ModuleSide:
    """Module and side of one tensor of a call, along an axis."""
    return site.module, CallAxis(site.call, key, axis, labels.shape)


def _sites(trace: ChannelTrace, free: Tensor) -> Iterator[ModuleSide]:
    """Calls that give channels, or average them; where none may go, with axis -1.

    Where code runs again and again, so have the calls that meet no channel.
    """
    met = {(site.module, code_of(site.call)) for site in trace.sites if site.tensors}
    for site in trace.sites:
        if not site.tensors and (site.module, code_of(site.call)) in met:
            yield site.module, CallAxis(site.call, "i", -1, (0,))
        for key, labels in site.tensors:
            axes = [axis for axis, n in enumerate(class_base(free, labels).shape) if n > 1]
            if key != "i" or averages(site.call):
                yield call_side(site, key, axes[0] if axes else -1, labels)


def _together(names: Sequence[str], made: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Layers that make channels of the same classes, in network order."""
    leader: dict[int, int] = {}
    parts: list[list[str]] = []
    for name in names:
        touched = sorted({leader[c] for c in made[name] if c in leader})
        if touched:
            first = touched[0]
            for other in touched[1:]:
                parts[first] += parts[other]
                parts[other] = []
            leader.update({c: first for c, at in leader.items() if at in touched})
        else:
            first = len(parts)
            parts.append([])
        parts[first].append(name)
        leader.update(dict.fromkeys(made[name], first))
    order = {name: i for i, name in enumerate(names)}
    return [sorted(part, key=order.__getitem__) for part in parts if part]


def _sets(
    own: set[int],
    everywhere: Mapping[int, Mapping[ModuleSide, Sequence[int]]],
    first: Sequence[int],
) -> tuple[tuple[int, ...], ...]:
    """Sets of classes that take equally much along, in the order of the first layer's channels."""
    kinds: dict[frozenset[tuple[ModuleSide, int]], list[int]] = {}
    place = {c: i for i, c in reversed(list(enumerate(first)))}
    for c in sorted(own, key=lambda c: (place.get(c, len(first)), c)):
        taken = frozenset(
            (p, len(index)) for p, index in everywhere[c].items() if p[1] in _OF_LAYERS
        )
        kinds.setdefault(taken, []).append(c)
    count = math.gcd(*(len(found) for found in kinds.values()))
    each = [
        (found[i * (len(found) // count) : (i + 1) * (len(found) // count)])
        for i in range(count)
        for found in kinds.values()
    ]
    size = len(kinds)
    return tuple(
        tuple(c for part in each[i * size : (i + 1) * size] for c in part) for i in range(count)
    )


def _why_so_few(trace: ChannelTrace, classes: Tensor, own: set[int], channels: int) -> str:
    """Why fewer than two sets of channels could go."""
    for atoms, operator in trace.mixed:
        if own & set(classes[atoms].tolist()):
            return f"all of them go into one {operator}, which would give something else"
    return f"these {channels} channels cannot be thinned so that every part loses equally many"


def _consumers(
    trace: ChannelTrace, own: set[int], everywhere: Mapping[int, Mapping[ModuleSide, Sequence[int]]]
) -> tuple[str, ...]:
    order = {name: i for i, name in enumerate(trace.order)}
    found = {module for c in own for module, side in everywhere[c] if side == "in"}
    return tuple(sorted(found & set(order), key=order.__getitem__))


def _residual(trace: ChannelTrace, classes: Tensor) -> set[int]:
    """Classes in which the streams of different layers are added."""
    maker: dict[int, str] = {}
    for axis in trace.axes:
        if axis.side != "in":
            for atom in axis.atoms.tolist():
                maker.setdefault(atom, axis.module)
    found: set[int] = set()
    for left, right in trace.added:
        if {maker.get(a) for a in left.tolist()} != {maker.get(a) for a in right.tolist()}:
            found |= set(classes[left].tolist()) | set(classes[right].tolist())
    return found


def _members(
    sets: Sequence[Sequence[int]],
    everywhere: Mapping[int, Mapping[ModuleSide, Sequence[int]]],
    name: str,
    channels: int,
) -> tuple[tuple[Member, ...], tuple[tuple[int, ...], ...]]:
    """What every channel of the first layer takes along, and which of them go together."""
    collected: dict[ModuleSide, list[list[int]]] = {}
    units = []
    for together in sets:
        whole = sorted(i for c in together for i in everywhere[c].get((name, "out"), ()))
        units.append(tuple(whole))
        for c in together:
            named = sorted(everywhere[c].get((name, "out"), ())) or whole
            for place, index in everywhere[c].items():
                if place not in collected:
                    collected[place] = [[] for _ in range(channels)]
                _share(sorted(index), named, collected[place])
    members = tuple(
        Member(module, side, tuple(tuple(sorted(own)) for own in index))
        for (module, side), index in collected.items()
    )
    return members, tuple(units)


def _share(index: Sequence[int], channels: Sequence[int], into: list[list[int]]) -> None:
    """Hand indices out to the channels that they go with, evenly where that is possible."""
    each, rest = divmod(len(index), len(channels))
    if not rest:
        for i, channel in enumerate(channels):
            into[channel] += index[i * each : (i + 1) * each]
    elif len(channels) % len(index) == 0:
        step = len(channels) // len(index)
        for i, own in enumerate(index):
            into[channels[i * step]].append(own)
    else:
        into[channels[0]] += index


def _spans(
    members: Sequence[Member], unit: Sequence[int], layers: Collection[str]
) -> tuple[tuple[str, float], ...]:
    """Per reader, how many of its inputs go with one channel; on average over those of a unit.

    A depthwise layer reads what it makes.
    """
    found: Counter[str] = Counter()
    for member in members:
        if member.side == "in" or (member.side == "both" and member.module in layers):
            found[member.module] += sum(len(member.index[c]) for c in unit)
    return tuple(
        (name, count // len(unit) if count % len(unit) == 0 else count / len(unit))
        for name, count in found.items()
    )

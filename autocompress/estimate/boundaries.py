"""Where the values between layers change from integers to floats or back.

The rule is that of the exporters: what joins several values runs on integers where all of them are
integers and integers are wanted, so that a residual stream is integer as far as every branch before
is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from autocompress.estimate.latency_row import LayerKernels, RowSum
from autocompress.policy.inventory import OUTSIDE, Inventory


def bit(place: int) -> int:
    """The bit that stands for a layer, or for ``OUTSIDE``, in a set of these."""
    return 1 << (place - OUTSIDE)


def floats(layers: Iterable[LayerKernels]) -> int:
    """The set of what gives and takes floats: layers, and all that no layer gives."""
    return sum((bit(i) for i, x in enumerate(layers) if x.precision != "int8"), bit(OUTSIDE))


@dataclass
class Value:
    """What some layers read.

    Args:
        made_of: set of the layers whose results it is.
        readers: set of the layers that read it.
        sizes: the layers whose outputs are as many values as it has, together.
        channels: of the uncompressed model.
        added: whether it is a sum of several.
        joined: other values that it is a part of.
        parts: values that it is made of.
    """

    made_of: int
    readers: int = 0
    sizes: tuple[int, ...] = ()
    channels: int = 0
    added: bool = False
    joined: list[Value] = field(default_factory=list)
    parts: list[Value] = field(default_factory=list)

    def integer(self, floats: int) -> bool:
        """Whether it holds integers."""
        ahead = [self]
        while ahead:
            value = ahead.pop()
            if value.made_of & floats:
                continue
            if not value.parts or value.readers & ~floats:
                return True
            ahead += value.joined
        return False

    def count(self, row: RowSum, floats: int, volume: Callable[[int], int], sign: int = 1) -> None:
        """Add what it costs to a row, or take it off."""
        values = sum(map(volume, self.sizes)) or row.image
        integer = self.integer(floats)
        if self.added:
            row.total["int8_adds" if integer else "float_adds"] += sign * values * 1e-3
        if not integer and self.readers & ~floats:
            row.add_change("to_int8", values, sign)
        elif integer and (
            self.readers & floats or any(not value.integer(floats) for value in self.joined)
        ):
            row.add_change("to_float", values, sign)


class Boundaries:
    """The values of a model.

    Args:
        inventory: of the uncompressed model.
        gone: places of layers that are left out.
    """

    def __init__(self, inventory: Inventory, gone: Collection[int] = ()) -> None:
        self.layers = inventory.layers
        self._sources = _sources(inventory)
        left_out = sum(map(bit, gone))
        readers: dict[int, int] = {}
        for i in range(len(self.layers)):
            if i not in gone:
                read = self._left(i, left_out)
                readers[read] = readers.get(read, 0) | bit(i)
        self._known: dict[int, Value] = {}
        self._sums: list[int] = []
        for read in sorted(readers, key=int.bit_count):
            self._known[read] = self._value(read, readers[read])
        self.values = list(self._known.values())

    def _left(self, place: int, gone: int) -> int:
        """What a layer reads: where all of it is left out, what that would have read."""
        read = self._sources[place]
        if left := read & ~gone:
            return left
        found = 0
        for i in _places(read):
            found |= self._left(i, gone)
        return found

    def _value(self, made_of: int, readers: int) -> Value:
        found = Value(made_of, readers)
        layers = made_of & ~bit(OUTSIDE)
        if made_of.bit_count() < 2:
            found.sizes = tuple(_places(layers))
            found.channels = sum(self.layers[i].out_channels for i in found.sizes)
            return found
        within = next((k for k in reversed(self._sums) if not k & ~made_of), 0)
        self._sums.append(made_of)
        singles = [bit(i) for i in _places(layers & ~within)]
        for single in singles:
            if single not in self._known:
                self._known[single] = self._value(single, 0)
        found.parts = [self._known[k] for k in (within, *singles) if k]
        for part in found.parts:
            part.joined.append(found)
        reader = next(_places(readers))
        channels = [part.channels for part in found.parts]
        found.added = self.layers[reader].in_channels < sum(channels)
        if found.added:
            found.sizes, found.channels = max(found.parts, key=self._volume).sizes, max(channels)
        else:
            found.sizes = tuple(i for part in found.parts for i in part.sizes)
            found.channels = sum(channels)
        return found

    def _volume(self, value: Value) -> int:
        return sum(self.layers[i].out_channels * self.layers[i].positions for i in value.sizes)

    @cached_property
    def _near(self) -> list[list[Value]]:
        """For each layer the values that it gives or takes."""
        found: list[list[Value]] = [[] for _ in self.layers]
        for value in self.values:
            for i in _places((value.made_of | value.readers) & ~bit(OUTSIDE)):
                found[i].append(value)
        return found

    def changed(self, places: Iterable[int], before: int, after: int) -> list[Value]:
        """Values that count otherwise when some layers change.

        Args:
            places: of the layers that change.
            before, after: what gives and takes floats.
        """
        flips = before ^ after
        found = {
            id(value): value
            for place in places
            for value in self._near[place]
            if place in value.sizes or flips & bit(place) & value.readers
        }
        ahead = [value for place in places for value in self._near[place] if flips & bit(place)]
        seen: set[int] = set()
        for value in ahead:  # grows by the parts of what turns
            if id(value) in seen:
                continue
            seen.add(id(value))
            if value.integer(before) != value.integer(after):
                found[id(value)] = value
                ahead += value.parts
        parts = {id(part): part for value in found.values() for part in value.parts}
        return list({**found, **parts}.values())


def _sources(inventory: Inventory) -> list[int]:
    """What each layer reads; the layer before it where nobody could follow the model."""
    if not inventory.sources:
        return [bit(i - 1) for i in range(len(inventory.layers))]
    return [sum(map(bit, read)) for read in inventory.sources]


def _places(layers: int) -> Iterator[int]:
    """The places that a set holds, in order."""
    while layers:
        lowest = layers & -layers
        yield lowest.bit_length() - 1 + OUTSIDE
        layers ^= lowest

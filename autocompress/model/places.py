"""Places along an axis: of the parts that it is cut into, of an index, as a slice."""

from __future__ import annotations

import itertools
from typing import Any


def parts_of(name: str, size: int, how: int | list[int]) -> list[range]:
    """The places of each part, in plain numbers, which ``torch.export`` can trace through."""
    if isinstance(how, int) and name == "tensor_split":
        small, longer = divmod(size, how)
        ends = [(i + 1) * small + min(i + 1, longer) for i in range(how)]
    elif isinstance(how, int):
        step = -(-size // how) if name.endswith("chunk") else how
        ends = [min(start + step, size) for start in range(0, size, step)]
    elif name == "tensor_split":
        ends = [*(min(end, size) for end in how), size]
    else:
        ends = list(itertools.accumulate(how))
    return [range(start, end) for start, end in itertools.pairwise([0, *ends])]


def place_of(index: tuple[Any, ...], axis: int, dims: int) -> int | None:
    """Which part of an index speaks of an axis; ``None`` where it is taken whole."""
    used = sum(1 for part in index if part is not None and part is not Ellipsis)
    at = 0
    for place, part in enumerate(index):
        if part is None:
            continue
        if part is Ellipsis:
            at += dims - used
            continue
        if at == axis:
            return None if part == slice(None) else place
        at += 1
    return None


def as_slice(places: list[int]) -> Any:
    """Places as a slice where they follow one another."""
    if places and places == list(range(places[0], places[0] + len(places))):
        return slice(places[0], places[-1] + 1)
    return places

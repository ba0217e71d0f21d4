"""Sums over samples: what clients answer, and how the answers of several become one.

All that compression without training asks of data is a sum over samples, or a histogram. Sums are
merged in pairs of about equal size, as a tree, so that rounding errors stay those of a few
additions and memory holds the logarithm of the number of clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.build.histogram import Histogram

_COUNTS, _FRAME = ".counts", ".frame"
"""What a histogram is written as: its counts, and where they lie."""


@dataclass(frozen=True)
class ClientSums:
    """What one client, or several together, say of their samples.

    Args:
        arrays: name to an array that adds up.
        histograms: name to a histogram.
    """

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)

    def __add__(self, other: ClientSums) -> ClientSums:
        """The sums over the samples of both.

        Raises:
            ValueError: they are sums of different things.
        """
        if self.shapes != other.shapes:
            raise ValueError("sums of different things cannot be added")
        return ClientSums(
            {n: a + other.arrays[n] for n, a in self.arrays.items()},
            {n: h + other.histograms[n] for n, h in self.histograms.items()},
        )

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """Name to the shape of its array; of a histogram, ``None``."""
        arrays = {n: np.shape(a) for n, a in self.arrays.items()}
        return {**arrays, **dict.fromkeys(self.histograms)}

    def wide(self) -> ClientSums:
        """The same in double precision, and whole numbers in 64 bits, so that many add up."""
        kinds = {"f": np.float64, "i": np.int64, "u": np.int64, "b": np.int64}
        return ClientSums(
            {n: np.asarray(a, kinds[np.asarray(a).dtype.kind]) for n, a in self.arrays.items()},
            self.histograms,
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays alone, for files and messages; ``from_arrays`` reads them again."""
        found = {f"sum.{n}": np.ascontiguousarray(a) for n, a in self.arrays.items()}
        for name, one in self.histograms.items():
            found[f"histogram.{name}{_COUNTS}"] = one.counts
            frame = (one.exponent, one.first, one.low, one.high)
            found[f"histogram.{name}{_FRAME}"] = np.array(frame, np.float64)
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ClientSums:
        """What ``to_arrays`` wrote; other names are passed over.

        Raises:
            KeyError: a histogram whose frame is missing.
        """
        plain = {n.removeprefix("sum."): a for n, a in arrays.items() if n.startswith("sum.")}
        histograms = {}
        for name, counts in arrays.items():
            if name.startswith("histogram.") and name.endswith(_COUNTS):
                stem = name.removesuffix(_COUNTS)
                exponent, first, low, high = arrays[stem + _FRAME].tolist()
                made = Histogram(int(exponent), int(first), counts, low, high)
                histograms[stem.removeprefix("histogram.")] = made
        return cls(plain, histograms)


class Tree:
    """Merges sums as they come, in pairs of about equal size.

    Args:
        parts: partial sums with the number of answers in each, as ``parts`` gave them.
    """

    def __init__(self, parts: list[tuple[int, ClientSums]] | None = None) -> None:
        self.parts = [] if parts is None else parts

    def add(self, sums: ClientSums) -> None:
        """Take one answer in."""
        self.parts.append((1, sums.wide()))
        while len(self.parts) > 1 and self.parts[-2][0] <= self.parts[-1][0]:
            (some, first), (more, second) = self.parts[-2:]
            self.parts[-2:] = [(some + more, first + second)]

    @property
    def count(self) -> int:
        """Answers so far."""
        return sum(count for count, _ in self.parts)

    def result(self) -> ClientSums:
        """All of them together.

        Raises:
            ValueError: there was none.
        """
        if not self.parts:
            raise ValueError("nothing was added")
        total = self.parts[-1][1]
        for _, part in reversed(self.parts[:-1]):
            total = part + total
        return total


def why_refused(sums: ClientSums, expected: Mapping[str, tuple[int, ...] | None]) -> str:
    """Why sums cannot be merged with others; empty where they can.

    Args:
        sums: of one client.
        expected: name to the shape that its array must have; ``None`` stands for a histogram.
    """
    for name, shape in expected.items():
        if name not in sums.shapes:
            return f"{name!r} is missing"
        if sums.shapes[name] != (None if shape is None else tuple(shape)):
            return f"{name!r} has the shape {sums.shapes[name]}, not {shape}"
    extra = sorted(set(sums.shapes) - set(expected))
    if extra:
        return f"nobody asked for {extra[0]!r}"
    for name, array in sums.arrays.items():
        if array.dtype.kind not in "fiu":
            return f"{name!r} holds no numbers"
        if not np.isfinite(array).all():
            return f"{name!r} is not finite"
    return next(_odd(sums.histograms), "")


def _odd(histograms: Mapping[str, Histogram]) -> Iterator[str]:
    for name, one in histograms.items():
        if not np.isfinite((one.low, one.high)).all() or one.low > one.high:
            yield f"the extremes of {name!r} are not finite"
        elif one.counts.dtype.kind != "i" or one.counts.ndim != 1 or (one.counts < 0).any():
            yield f"{name!r} holds no counts"
        elif one.frame != Histogram.framed(one.low, one.high):
            yield f"the bins of {name!r} do not fit its extremes"

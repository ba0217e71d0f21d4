"""Histograms that add up: those of two parts of the data give that of both, to the last count.

Bins are as wide as a power of two and begin at multiples of it, so that those of a narrow histogram
nest in those of a wide one, and the width follows from the extremes alone. Whichever parts are
merged first, the result is the histogram of all values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048
"""At most; a tensor's 8-bit step then spans at least four of them."""

_FINEST = -60
_DIGITS = 40
"""Bins are no finer than the largest value times two to the minus so many."""


@dataclass(frozen=True)
class Histogram:
    """How often values of one tensor fell into each bin.

    Args:
        exponent: bins are ``2 ** exponent`` wide.
        first: number of the first bin, which begins at ``first * 2 ** exponent``.
        counts: ``(bins,)`` integers.
        low, high: least and greatest value.
    """

    exponent: int
    first: int
    counts: NDArray[np.int64]
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Histogram:
        """Of values of any shape, at least one.

        Raises:
            ValueError: no values, or values that are not finite.
        """
        flat = np.asarray(values, np.float64).reshape(-1)
        if not flat.size or not np.isfinite(flat).all():
            raise ValueError("a histogram needs at least one value, all of them finite")
        low, high = float(flat.min()), float(flat.max())
        exponent, first, bins = cls.framed(low, high)
        places = np.floor(np.ldexp(flat, -exponent)).astype(np.int64) - first
        return cls(exponent, first, np.bincount(places, minlength=bins), low, high)

    @classmethod
    def empty(cls) -> Histogram:
        """Of no values; ranges hold zero in any case, so that its place there changes none."""
        exponent, first, bins = cls.framed(0.0, 0.0)
        return cls(exponent, first, np.zeros(bins, np.int64), 0.0, 0.0)

    def __add__(self, other: Histogram) -> Histogram:
        """The histogram of the values of both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        exponent, first, bins = self.framed(low, high)
        counts = np.zeros(bins, np.int64)
        for one in (self, other):
            places = (one.first + np.arange(len(one.counts))) >> (exponent - one.exponent)
            np.add.at(counts, places - first, one.counts)
        return Histogram(exponent, first, counts, low, high)

    @staticmethod
    def framed(low: float, high: float) -> tuple[int, int, int]:
        """Where the bins of values between two extremes lie: exponent, first bin, their number."""
        exponent = _exponent(low, high)
        first = math.floor(math.ldexp(low, -exponent))
        return exponent, first, math.floor(math.ldexp(high, -exponent)) - first + 1

    @property
    def frame(self) -> tuple[int, int, int]:
        """Where its bins lie, to be compared with what ``framed`` says of its extremes."""
        return self.exponent, self.first, len(self.counts)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin, within the extremes."""
        middles = np.ldexp(self.first + np.arange(len(self.counts)) + 0.5, self.exponent)
        return np.clip(middles, self.low, self.high)

    def quantile(self, share: float) -> float:
        """The value that a share of all values lies below, to the width of a bin."""
        places = np.cumsum(self.counts) >= share * self.counts.sum()
        return float(self.centres[int(np.argmax(places))])


def _exponent(low: float, high: float) -> int:
    """The narrowest bins that reach from one value to the other; wider for wider intervals."""
    largest = max(abs(low), abs(high))
    exponent = _FINEST if largest == 0 else max(_FINEST, math.frexp(largest)[1] - _DIGITS)
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / BINS)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent

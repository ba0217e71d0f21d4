"""Latency over a sequence of different inputs, for models whose latency depends on the input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.machine.lock import after_timing, timing_lock

BLOCK = 25
"""Inputs that one model takes in a row before the next has its turn: each turn begins with a call
that is not timed, because the others have pushed its weights out of the caches."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class SequenceTimes:
    """How long each model took for each input.

    Args:
        ms: ``(inputs, models)``.
    """

    ms: NDArray[np.float64]

    def told(self, model: int) -> dict[str, float]:
        """Mean, quantiles and the worst, in ms."""
        each = self.ms[:, model]
        middle, high, higher = np.percentile(each, [50, 95, 99])
        return {
            "mean_ms": float(each.mean()),
            "p50_ms": float(middle),
            "p95_ms": float(high),
            "p99_ms": float(higher),
            "worst_ms": float(each.max()),
        }

    def ratio(self, model: int, other: int = 0, seed: int = 0) -> tuple[float, float, float]:
        """Mean of one as a share of another's mean, with its 95 % interval by bootstrap.

        Turns are drawn anew, not single inputs: what disturbs a machine lasts for many inputs.
        """
        starts = np.arange(0, len(self.ms), BLOCK)
        sums = np.add.reduceat(self.ms[:, [model, other]], starts, axis=0)
        drawn = np.random.default_rng(seed).integers(0, len(sums), (_RESAMPLES, len(sums)))
        totals = sums[drawn].sum(axis=1)
        low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
        mine, theirs = sums.sum(axis=0)
        return float(mine / theirs), float(low), float(high)


def time_sequence(
    calls: Sequence[Callable[[Any], object]],
    chunks: Iterable[Sequence[Any]],
    *,
    seed: int = 0,
    max_seconds: float = 120.0,
) -> SequenceTimes:
    """Time models on the same inputs, one input at a time, taking turns.

    The timing lock is held while calls are timed, not while inputs are read.

    Args:
        calls: take one input each.
        chunks: inputs in their order, so many at a time as fit into memory.
        seed: of the order of the models in each block.
        max_seconds: no further block is begun after this long; at least one is timed.
    """
    rng, begun = np.random.default_rng(seed), time.perf_counter()
    rows: list[NDArray[np.float64]] = []
    for chunk in chunks:
        after_timing()
        for start in range(0, len(chunk), BLOCK):
            if rows and time.perf_counter() - begun > max_seconds:
                return SequenceTimes(np.concatenate(rows))
            block = chunk[start : start + BLOCK]
            times = np.empty((len(block), len(calls)))
            with timing_lock():
                for model in rng.permutation(len(calls)):
                    times[:, model] = _turn(calls[model], block)
            rows.append(times)
    return SequenceTimes(np.concatenate(rows))


def _turn(call: Callable[[Any], object], block: Sequence[Any]) -> list[float]:
    call(block[0])
    found = []
    for one in block:
        begin = time.perf_counter()
        call(one)
        found.append((time.perf_counter() - begin) * 1e3)
    return found

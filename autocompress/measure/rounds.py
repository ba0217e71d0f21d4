"""Rounds of paired timing, and which of them were quiet; packed, so that it needs numpy only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

SLACK = 0.1
"""Timings on a quiet machine differ by less than this fraction, disturbed ones by 10 to 45 %."""
FEWEST = 6
"""With fewer rounds not even their whole range is a 95 % interval of the median."""
_NEARBY = 2
"""Rounds on either side that tell in which state the machine was."""

Call = Callable[[], object]
Clock = Callable[[], float]


def warm_up(
    call: Call, clock: Clock = time.perf_counter, *, max_seconds: float = 1.0, window: int = 5
) -> float:
    """Call until two windows in a row take the same time within 5 %; seconds per call.

    Args:
        max_seconds: give up waiting for stability after this long.
        window: calls per window.
    """
    start = clock()
    before = float("nan")  # compares false with everything: the first window is never stable
    while True:
        times = []
        for _ in range(window):
            begin = clock()
            call()
            times.append(clock() - begin)
        now = median(times)
        spent = clock() - start
        stable = abs(now - before) <= 0.05 * before
        if (stable and spent >= 0.03) or spent >= max_seconds:
            return max(now, 1e-9)
        before = now


def take_round(
    calls: Sequence[Call],
    repeats: Sequence[int],
    rng: np.random.Generator,
    clock: Clock = time.perf_counter,
    singles: list[list[list[float]]] | None = None,
) -> list[list[float]]:
    """Visit every call in random order and again in reverse (ABBA).

    A linear drift of the machine's speed cancels. Each turn starts with one call that is not timed,
    because the others have pushed its data out of the caches.

    Args:
        repeats: timed calls per turn, for each call.
        singles: takes the milliseconds of every timed call: one entry per turn, a list for each
            call.

    Returns:
        Two turns, each with the median milliseconds of every call.
    """
    order = rng.permutation(len(calls))
    turns = []
    for visit in (order, order[::-1]):
        times: list[list[float]] = [[] for _ in calls]
        for i in visit:
            times[i] = _turn(calls[i], repeats[i], clock)
        turns.append([median(own) for own in times])
        if singles is not None:
            singles.append(times)
    return turns


def _turn(call: Call, repeats: int, clock: Clock) -> list[float]:
    call()
    times = []
    for _ in range(repeats):
        begin = clock()
        call()
        times.append(1e3 * (clock() - begin))
    return times


def quiet_rounds(
    baselines: Sequence[NDArray[np.float64]], slowest_ms: float = math.inf
) -> NDArray[np.bool_]:
    """Which rounds were taken while the machine ran about as quickly as it did in any of them.

    What shares a core with us slows some code more than other code, for as short as a tenth of a
    second, and then a round's ratio is another one. A round's own time has no say in whether it
    counts, only that of the two rounds on either side: to choose rounds by their own would favour
    those in which the baseline was quick by chance.

    Args:
        baselines: times of the baseline, round by round; one array for each repetition.
        slowest_ms: what it takes at most on a quiet machine; infinite where that is not known, and
            of no account where hardly any round was that quick.

    Returns:
        A mask over all rounds that leaves at least six; all of them where there are no more.
    """
    level = np.concatenate([_neighbours(times) for times in baselines])
    if len(level) <= FEWEST:
        return np.ones(len(level), dtype=np.bool_)
    sixth = np.sort(level)[FEWEST - 1]
    quick = (1 + SLACK) * np.percentile(level, 10)
    return np.asarray(level <= max(sixth, min(slowest_ms, quick) if sixth <= slowest_ms else quick))


def _neighbours(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each round the median of those on either side."""
    count = len(times)
    width = min(2 * _NEARBY + 1, count)
    if width < 2:
        return times
    first = np.clip(np.arange(count) - _NEARBY, 0, count - width)
    places = first[:, None] + np.arange(width)
    others = places[places != np.arange(count)[:, None]].reshape(count, width - 1)
    return np.asarray(np.median(times[others], axis=1))

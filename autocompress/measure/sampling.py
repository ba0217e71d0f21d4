"""Interleaved timing of several calls until their ratios are known well enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.measure.quiet import SLACK

#: with fewer rounds not even their whole range is a 95 % interval of the median
_FEWEST = 6
#: rounds on either side that tell in which state the machine was
_BESIDE = 2

Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to time.

    Args:
        precision: wanted width of the ratio's interval, as a fraction of the ratio.
        confidence: of the interval.
        min_rounds: rounds before the first look at the interval; each holds every call twice.
        max_seconds: time limit after the warm-up; the interval may then still be too wide. A few
            rounds are taken in any case.
        slot_ms: one call's turn in a round lasts about this long, in as many calls as fit.
        seed: of the order of turns and of the bootstrap.
        slowest_ms: what the baseline takes at most on a quiet machine, where that is known. While
            the time lasts, rounds around which it takes longer do not count.
    """

    precision: float = 0.03
    confidence: float = 0.95
    min_rounds: int = 12
    max_seconds: float = 8.0
    slot_ms: float = 4.0
    seed: int = 0
    slowest_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """Rounds of an interleaved timing.

    Args:
        rounds: ``(rounds, calls)``, milliseconds of one call, the mean of its two turns' medians.
        turns: ``(2 * rounds, calls)``, the turns' medians themselves.
        seconds: time spent, warm-up included.
        narrow: whether every interval became as narrow as asked.
        left_out: rounds that were disturbed and are in none of these.
    """

    rounds: NDArray[np.float64]
    turns: NDArray[np.float64]
    seconds: float
    narrow: bool
    left_out: int = 0


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
        now = float(np.median(times))
        spent = clock() - start
        stable = abs(now - before) <= 0.05 * before
        if (stable and spent >= 0.03) or spent >= max_seconds:
            return max(now, 1e-9)
        before = now


def interleave(calls: Sequence[Call], plan: Plan, clock: Clock = time.perf_counter) -> Samples:
    """Time several calls in turn; the first is the baseline of the ratios.

    A round visits every call in random order and again in reverse (ABBA), so that a linear drift
    of the machine's speed cancels. Each turn starts with one call that is not timed, because the
    others have pushed its data out of the caches. Rounds in which something disturbed the machine
    do not count (see ``undisturbed``).

    Args:
        calls: at least one; the first is the baseline.
        plan: when to stop.
        clock: in seconds.
    """
    start = clock()
    per_call = [warm_up(call, clock) for call in calls]
    repeats = [max(1, min(50, round(plan.slot_ms / 1e3 / t))) for t in per_call]
    rng = np.random.default_rng(plan.seed)
    turns: list[list[float]] = []
    limit = clock() + plan.max_seconds
    slowest = math.inf if plan.slowest_ms is None else plan.slowest_ms
    next_look = plan.min_rounds
    narrow = False
    while True:
        order = rng.permutation(len(calls))
        for visit in (order, order[::-1]):
            row = [0.0] * len(calls)
            for i in visit:
                row[i] = _turn(calls[i], repeats[i], clock)
            turns.append(row)
        rounds = len(turns) // 2
        over = clock() >= limit and rounds >= min(_FEWEST, plan.min_rounds)
        if rounds >= next_look or over:
            next_look = rounds + max(4, rounds // 4)
            means = _means(turns)
            kept = undisturbed(means[:, 0], slowest)
            calm = np.median(means[kept, 0]) <= slowest
            narrow = calm and kept.sum() >= plan.min_rounds and _narrow(means[kept], plan)
            if narrow or over:
                chosen = np.array(turns)[np.repeat(kept, 2)]
                left_out = int((~kept).sum())
                return Samples(means[kept], chosen, clock() - start, narrow, left_out)


def undisturbed(baseline: NDArray[np.float64], slowest_ms: float = math.inf) -> NDArray[np.bool_]:
    """Which rounds were taken while the machine ran about as quickly as it did in any of them.

    What shares a core with us slows some code more than other code, for as short as a tenth of a
    second, and then a round's ratio is another one. A round's own time has no say in whether it
    counts, only that of the two rounds on either side: to choose rounds by their own would favour
    those in which the baseline was quick by chance.

    Args:
        baseline: ``(rounds,)`` times of the baseline, in order.
        slowest_ms: see ``Plan``; infinite where that is not known.

    Returns:
        A mask that leaves at least six rounds; all of them where there are no more.
    """
    count, width = len(baseline), 2 * _BESIDE + 1
    if count <= max(_FEWEST, width):
        return np.ones(count, dtype=np.bool_)
    first = np.clip(np.arange(count) - _BESIDE, 0, count - width)
    places = first[:, None] + np.arange(width)
    others = places[places != np.arange(count)[:, None]].reshape(count, width - 1)
    level = np.median(baseline[others], axis=1)
    quick = min(slowest_ms, (1 + SLACK) * np.percentile(level, 10))
    return np.asarray(level <= max(quick, np.sort(level)[_FEWEST - 1]))


def ratio_interval(
    candidate: NDArray[np.float64],
    baseline: NDArray[np.float64],
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """Median of the rounds' ratios and its bootstrap interval (percentiles, paired by round).

    The percentiles lie further out than the plain bootstrap's, as Student's quantiles do: with a
    dozen rounds the plain ones miss the truth in 7 % of the cases instead of 5 %.

    Args:
        candidate, baseline: ``(rounds,)`` times of the same rounds, two rounds at least.
        confidence: of the interval, in (0, 1).
        seed: of the resampling.
        resamples: bootstrap replications.

    Returns:
        Ratio, low end, high end.

    References:
        Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69
        (2015), the expanded percentile interval.
    """
    ratios = candidate / baseline
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(ratios), (resamples, len(ratios)))
    medians = np.median(ratios[index], axis=1)
    tail = 100 * tail_share(len(ratios), confidence)
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(np.median(ratios)), float(low), float(high)


def tail_share(count: int, confidence: float) -> float:
    """Share of bootstrap replications left out at either end, for so many observations."""
    from scipy.special import ndtr, stdtrit

    quantile = stdtrit(count - 1, (1 - confidence) / 2)
    return float(ndtr(quantile * (count / (count - 1)) ** 0.5))


def _turn(call: Call, repeats: int, clock: Clock) -> float:
    call()
    times = np.empty(repeats)
    for i in range(repeats):
        begin = clock()
        call()
        times[i] = clock() - begin
    return float(np.median(times)) * 1e3


def _means(turns: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    array = np.array(turns)
    return (array[0::2] + array[1::2]) / 2


def _narrow(rounds: NDArray[np.float64], plan: Plan) -> bool:
    if len(rounds) < 3:
        return False
    others = range(1, rounds.shape[1]) if rounds.shape[1] > 1 else range(1)
    for i in others:
        base = rounds[:, 0] if i else np.full(len(rounds), np.median(rounds[:, 0]))
        ratio, low, high = ratio_interval(
            rounds[:, i], base, plan.confidence, plan.seed, resamples=500
        )
        if high - low > plan.precision * ratio:
            return False
    return True

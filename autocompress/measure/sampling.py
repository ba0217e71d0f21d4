"""Paired timing: rounds of a baseline and candidates until their ratios are known well enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from statistics import NormalDist, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.measure.quiet import QuietSpeed, Work
from autocompress.measure.rounds import FEWEST, Call, Clock, quiet_rounds, take_round, warm_up

FEWEST_SINGLE = 100
"""Single calls whose 99th percentile is told."""
_AGREE = 0.05
"""Two repetitions agree when their ratios differ by no more than this fraction."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to time.

    Args:
        precision: wanted width of the ratio's interval, as a fraction of the ratio.
        confidence: of the interval.
        min_rounds: quiet rounds of each repetition; each holds every call twice.
        max_seconds: time limit for rounds; the interval may then still be too wide. A few rounds
            are taken in any case, and waiting for a quiet machine comes on top.
        slot_ms: one call's turn in a round lasts about this long, in as many calls as fit.
        seed: of the order of turns and of the bootstrap.
        apart_s: seconds between two repetitions.
        single_calls: times of so many single calls, however long that takes; for the 99th
            percentile.
    """

    precision: float = 0.03
    confidence: float = 0.95
    min_rounds: int = 12
    max_seconds: float = 8.0
    slot_ms: float = 4.0
    seed: int = 0
    apart_s: float = 1.0
    single_calls: int = 0


@dataclass(frozen=True, slots=True)
class Samples:
    """Rounds of a paired timing; call 0 is the baseline, the others are candidates.

    Args:
        turns: ``(2 * rounds, calls)``, median milliseconds of each call in each turn.
        used: ``(rounds,)``, those that count.
        repetitions: ``(repetitions, calls)``, the median ratio in each.
        agreeing: repetitions that agree, of the call that has the fewest.
        disturbed: the baseline ran slower than it has been seen to.
        seconds: time spent, warm-up and waiting included.
        waited_s: of these, waiting for a quiet machine.
        tails: ``(calls,)``, 99th percentile of the single calls in the rounds that count, as a
            multiple of their median; NaN of fewer than a hundred.
    """

    turns: NDArray[np.float64]
    used: NDArray[np.bool_]
    repetitions: NDArray[np.float64]
    agreeing: int = 1
    disturbed: bool = False
    seconds: float = 0.0
    waited_s: float = 0.0
    tails: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def interval(self, call: int, plan: Plan, resamples: int = 2000) -> tuple[float, float, float]:
        """A call's ratio and both ends of its interval."""
        base, own = _rounds(self.turns)[self.used][:, [0, call]].T
        return ratio_interval(own, base, plan.confidence, plan.seed, resamples)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``from_dict`` inverts it."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Samples:
        """Inverse of ``as_dict``."""
        arrays = {name: np.array(data[name]) for name in ("turns", "used", "repetitions", "tails")}
        return cls(**{**data, **arrays})

    def times(self, call: int) -> NDArray[np.float64]:
        """Milliseconds of a call in the turns that count."""
        return self.turns[np.repeat(self.used, 2), call]

    def narrow(self, plan: Plan) -> bool:
        """Whether every interval is as narrow as asked, with as many rounds as that takes."""
        if self.used.sum() < max(3, plan.min_rounds):
            return False
        found = (self.interval(i, plan, resamples=500) for i in range(1, self.turns.shape[1]))
        return all(high - low <= plan.precision * ratio for ratio, low, high in found)


@dataclass
class InterleavedTiming(Work):
    """Times several calls in turn until their ratios are known, or the time is over.

    What shares a core with us (another tenant on its second hardware thread) can slow code of one
    kind more than of another for seconds at a time: wide integer instructions by half, floating
    point by a tenth. Then even an interleaved ratio is wrong, and its interval does not know. Since
    whatever comes from outside only slows, those rounds count around which the baseline ran
    quickly. Two disturbed repetitions agree as well: where the baseline has been seen to run
    quicker, the next one waits until it does. Before ten repetitions have shown how quickly that
    is, two that lie apart in time must agree.

    Args:
        calls: the baseline and at least one candidate.
        plan: when to stop.
        quiet: what earlier timings of the same baseline showed; told about these.
        pause: waits for so many seconds.
        clock: in seconds.
    """

    calls: Sequence[Call]
    plan: Plan
    quiet: QuietSpeed
    pause: Callable[[float], None] = time.sleep
    clock: Clock = time.perf_counter
    _taken: list[NDArray[np.float64]] = field(default_factory=list)
    _singles: list[list[list[float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.plan.seed)
        self._enough = 1 if self.quiet.experienced else 2

    def run(self) -> Samples:
        """Warm up, and take repetitions until they tell enough."""
        start, slot = self.clock(), self.plan.slot_ms / 1e3
        times = [warm_up(call, self.clock) for call in self.calls]
        self._repeats = [max(1, min(50, round(slot / one))) for one in times]
        needed = -(-self.plan.single_calls // (2 * min(self._repeats)))
        a_round = 2 * sum((n + 1) * t for n, t in zip(self._repeats, times, strict=True))
        seconds = max(self.plan.max_seconds, 1.2 * needed * a_round)
        waited = self.collect(self._enough, seconds, self.plan.apart_s)
        found = self._judge()
        tails = np.array([self._tail(i, found.used) for i in range(len(self.calls))])
        return replace(found, seconds=self.clock() - start, waited_s=waited, tails=tails)

    def _tail(self, call: int, used: NDArray[np.bool_]) -> float:
        """The 99th percentile of a call's single times over their median."""
        turns = zip(self._singles, np.repeat(used, 2), strict=True)
        times = [ms for turn, kept in turns if kept for ms in turn[call]]
        if len(times) < FEWEST_SINGLE:
            return math.nan
        return float(np.percentile(times, 99) / np.median(times))

    @property
    def _many_calls(self) -> bool:
        return len(self._singles) * min(self._repeats) >= self.plan.single_calls

    def settled(self) -> bool:
        """Whether the repetitions agree, and were quiet, and their intervals are narrow."""
        found = self._judge()
        calm = found.agreeing >= self._enough and not found.disturbed
        return calm and self._many_calls and found.narrow(self.plan)

    def look(self) -> float:
        """Milliseconds of the baseline at this moment, roughly.

        Taken after its warm-up, as in rounds: a core that was idle is slow at first.
        """
        warm_up(self.calls[0], self.clock)
        take = partial(take_round, self.calls[:1], self._repeats[:1], self._rng, self.clock)
        return float(np.median([take() for _ in range(2)]))

    def piece(self, limit_s: float, patient: bool) -> bool:
        """One repetition: rounds until the intervals are narrow, or the time is over.

        A few rounds are taken in any case.
        """
        plan, begin, next_look = self.plan, self.clock(), self.plan.min_rounds
        slowest = self.quiet.slowest_ms
        turns: list[list[float]] = []
        self._taken.append(np.empty((0, len(self.calls))))
        while True:
            turns += take_round(self.calls, self._repeats, self._rng, self.clock, self._singles)
            rounds = len(turns) // 2
            latest = [turn[0] for turn in turns[-2 * FEWEST :]]
            broken_off = patient and rounds >= FEWEST and median(latest) > slowest
            over = rounds >= min(FEWEST, plan.min_rounds) and self.clock() - begin >= limit_s
            if not (broken_off or over or rounds >= next_look):
                continue
            next_look = rounds + max(4, rounds // 4)
            self._taken[-1] = np.array(turns)
            base = _rounds(self._taken[-1])[:, 0]
            kept = quiet_rounds([base], slowest)
            middle = float(np.median(base[kept]))
            many = middle <= slowest and kept.sum() >= plan.min_rounds
            many = many and len(turns) * min(self._repeats) * self._enough >= plan.single_calls
            if broken_off or over or (many and self._judge().narrow(plan)):
                self.quiet.note(middle)
                return broken_off or self.quiet.disturbed(middle)

    def _judge(self) -> Samples:
        """What the repetitions say together.

        In each, the quiet rounds count. A whole repetition does not count where the baseline ran
        slower than in the quickest by more than chance explains. A candidate's own time has no say
        in this, or it would be favoured.
        """
        slowest = self.quiet.slowest_ms
        turns = np.concatenate(self._taken)
        rounds = _rounds(turns)
        kept = quiet_rounds([_rounds(t)[:, 0] for t in self._taken], slowest)
        place = np.repeat(np.arange(len(self._taken)), [len(t) // 2 for t in self._taken])
        counts = np.bincount(place[kept], minlength=len(self._taken))
        base, error = np.full((2, len(counts)), np.inf)
        ratios = np.empty((len(counts), len(self.calls)))
        fewest = min(FEWEST, self.plan.min_rounds, counts.max())
        for i, count in enumerate(counts):
            own = rounds[(kept | (count < fewest)) & (place == i)]
            ratios[i] = np.median(own / own[:, :1], axis=0)
            if count >= fewest:
                low, base[i], high = np.percentile(own[:, 0], [25, 50, 75])
                error[i] = (high - low) / count**0.5  # about that of a median
        best = base.argmin()
        chance = np.maximum(_AGREE * base[best], 3 * np.hypot(error, error[best]))
        quick = np.isfinite(base) & (base - base[best] <= chance)
        used = kept & quick[place]
        ratio = np.median(rounds[used] / rounds[used][:, :1], axis=0)
        near = quick[:, None] & (np.abs(ratios - ratio) <= _AGREE * ratio)
        disturbed = bool(np.median(rounds[used, 0]) > slowest)
        return Samples(turns, used, ratios, int(near.sum(axis=0).min()), disturbed)


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


@cache
def tail_share(count: int, confidence: float) -> float:
    """Share of bootstrap replications left out at either end, for so many observations."""
    # Student's distribution of n degrees is that of sqrt(n) tan(a) for a density cos(a)^(n-1)
    n = count - 1
    angles = np.linspace(0, min(math.pi / 2, 12 / n**0.5), 20_001)
    density = np.cos(angles) ** (n - 1)
    below = np.append(0, np.cumsum(density[1:] + density[:-1]))
    quantile = -math.tan(np.interp(confidence * below[-1], below, angles)) * n**0.5
    return NormalDist().cdf(quantile * (count / n) ** 0.5)


def _rounds(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(rounds, calls)``, milliseconds of one call, the mean of its two turns."""
    return (turns[0::2] + turns[1::2]) / 2

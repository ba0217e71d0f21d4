"""Paired timing on a clock that the test drives, and the interval against scipy's."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats

from autocompress.measure import sampling
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.rounds import quiet_rounds, warm_up
from autocompress.measure.sampling import (
    InterleavedTiming,
    Plan,
    Samples,
    ratio_interval,
    tail_share,
)


class Machine:
    """Calls that take as long as they are told, on a clock of their own.

    Args:
        seed: of the noise and the spells.
        noise: standard deviation of the times' logarithm.
        drift: by how much the machine slows in a second.
        spells: mean seconds of quiet, and of spells in which the baseline takes 1.3 and all else
            1.6 times as long.
    """

    def __init__(
        self,
        seed: int = 0,
        noise: float = 0.0,
        drift: float = 0.0,
        spells: tuple[float, float] | None = None,
    ) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self._rng = np.random.default_rng(seed)
        self._noise = noise
        self._drift = drift
        self._ends: list[float] = []
        if spells is not None:
            between = np.random.default_rng(seed).exponential(np.tile(spells, 1000))
            self._ends = list(np.cumsum(between))

    @property
    def loud(self) -> bool:
        return bool(np.searchsorted(self._ends, self.now) % 2)

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def take(self, calls: dict[str, float], plan: Plan, known: QuietSpeed | None = None) -> Samples:
        """Time calls that take so many milliseconds."""
        quiet = known or QuietSpeed()
        named = [self.call(name, ms) for name, ms in calls.items()]
        return InterleavedTiming(named, plan, quiet, pause=self.pause, clock=self.clock).run()

    def call(self, name: str, ms: float) -> Callable[[], None]:
        def run() -> None:
            factor = np.exp(self._noise * self._rng.standard_normal())
            slow = (1.3 if name == "base" else 1.6) if self.loud else 1.0
            self.now += ms / 1e3 * float(factor) * slow * (1 + self._drift * self.now)
            self.log.append(name)

        return run


def rounds(taken: Samples) -> np.ndarray:
    """``(rounds, calls)``: the mean of both turns."""
    return (taken.turns[0::2] + taken.turns[1::2]) / 2


def known(ms: float) -> QuietSpeed:
    """Ten timings have shown how quickly the baseline runs."""
    return QuietSpeed(deque([ms] * 10, maxlen=30))


def test_without_noise_the_times_are_exact() -> None:
    machine = Machine()
    found = machine.take({"base": 2.0, "a": 1.0, "b": 5.0}, Plan(min_rounds=8))
    assert found.used.all()
    np.testing.assert_allclose(found.turns, np.tile([2.0, 1.0, 5.0], (len(found.turns), 1)))
    assert found.narrow(Plan())
    assert len(found.turns) == 2 * len(found.used)
    assert found.seconds == pytest.approx(machine.now)
    np.testing.assert_allclose(found.repetitions, [[1.0, 0.5, 2.5]] * 2)


def test_a_drifting_machine_leaves_the_ratio_alone() -> None:
    """Speed that falls by 3 % a second: rounds differ, but both calls of a round meet the same."""
    plan = Plan(precision=1e-9, min_rounds=12, max_seconds=3)
    found = Machine(drift=0.03).take({"base": 2.0, "a": 1.0}, plan, QuietSpeed(deque([9.0] * 10)))
    base = rounds(found)[found.used, 0]
    assert base[-1] > 1.05 * base[0]
    ratio, low, high = found.interval(1, plan)
    assert ratio == pytest.approx(0.5, rel=2e-3)
    assert high - low < 5e-3


def test_every_round_visits_all_calls_there_and_back() -> None:
    machine = Machine()
    names = ["base", "a", "b"]
    machine.take(dict.fromkeys(names, 4.0), Plan(min_rounds=4, slot_ms=1.0), known(4.0))
    # a turn is one call that does not count and one that does; the first turns belong to warm-up
    turns = [machine.log[i] for i in range(len(machine.log) - 2 * 24, len(machine.log), 2)]
    for start in range(0, len(turns), 6):
        there, back = turns[start : start + 3], turns[start + 3 : start + 6]
        assert sorted(there) == sorted(names)
        assert back == there[::-1]


def test_the_time_limit_ends_a_noisy_timing() -> None:
    """Also where the repetitions of it never agree."""
    for noise, plan in ((0.5, Plan(precision=1e-6, max_seconds=1.0)), (2.0, Plan(max_seconds=1.0))):
        found = Machine(noise=noise).take({"base": 1.0, "a": 1.0}, plan)
        assert not found.narrow(plan)
        assert found.seconds < 3.0 + plan.apart_s * len(found.repetitions)


def test_slow_calls_get_a_few_rounds_whatever_the_limit() -> None:
    found = Machine(noise=0.1).take({"base": 900.0, "a": 900.0}, Plan(max_seconds=0.1))
    assert len(found.used) == 6


def test_warm_up_waits_until_calls_stop_getting_faster() -> None:
    machine = Machine()
    costs = iter([50.0] * 5 + [20.0] * 5 + [10.0] * 1000)

    def call() -> None:
        machine.now += next(costs) / 1e3

    assert warm_up(call, machine.clock) == pytest.approx(0.010)


@pytest.mark.parametrize("experienced", [True, False])
def test_the_same_file_against_itself_is_called_different_as_often_as_stated(
    experienced: bool,
) -> None:
    """A 95 % interval of 400 null experiments: the misses must fit a 5 % coin."""
    missed = 0
    plan = Plan(min_rounds=12, slot_ms=1.0)
    for seed in range(400):
        machine = Machine(seed, noise=0.03)
        quiet = known(1.0) if experienced else None
        _, low, high = machine.take({"base": 1.0, "a": 1.0}, plan, quiet).interval(1, plan, 500)
        missed += not low <= 1 <= high
    assert scipy.stats.binomtest(missed, 400, 0.05, alternative="greater").pvalue > 0.01
    assert missed > 0  # an interval that never misses would be too wide to tell anything


def test_a_true_difference_is_found() -> None:
    found = Machine(1, noise=0.03).take({"base": 1.0, "a": 0.9}, Plan())
    ratio, low, high = found.interval(1, Plan())
    assert low < 0.9 < high < 1
    assert ratio == pytest.approx(0.9, abs=0.02)


def ratios(
    times: int, machines: Callable[[int], Machine], plan: Plan, ms: float | None = None
) -> list[float]:
    """Of a file that takes half as long, each on a machine of its own."""
    found = []
    for seed in range(times):
        taken = machines(seed).take({"base": 5.0, "a": 2.5}, plan, known(ms) if ms else None)
        found.append(taken.interval(1, plan, resamples=2)[0])
    return found


def test_rounds_in_short_spells_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet and spells of 0.4 seconds in turn: how many of 100 timings are off by 5 %."""

    def off() -> int:
        machines = partial(Machine, noise=0.02, spells=(0.4, 0.4))
        found = ratios(100, machines, Plan(max_seconds=3.0), 5.0)
        return sum(abs(r / 0.5 - 1) > 0.05 for r in found)

    assert off() <= 2

    def all_rounds(baselines: list[np.ndarray], slowest_ms: float) -> np.ndarray:
        return np.concatenate(baselines) > 0

    monkeypatch.setattr(sampling, "quiet_rounds", all_rounds)
    assert off() >= 10


@pytest.mark.parametrize("ms", [None, 5.0])
def test_leaving_rounds_out_favours_nobody(ms: float | None) -> None:
    """A file beside itself with a fifth of noise: the mean of 400 medians is 1 within 4 sigma.

    Rounds chosen by their own baseline would have the file look slower than it is.
    """
    plan = Plan(max_seconds=1.0)
    found = 2 * np.array(ratios(400, lambda seed: Machine(seed, noise=0.2), plan, ms))
    assert abs(found.mean() - 1) < 4 * found.std() / 20
    assert found.std() < 0.1


def test_a_round_counts_by_its_neighbours_alone() -> None:
    base = np.ones(30)
    base[10] = 9.0  # one slow round among quick ones tells nothing about its candidate
    base[20:] = 1.2
    kept = quiet_rounds([base])
    assert kept[:18].all()
    assert not kept[22:].any()
    # nothing is that quick: the quickest ones count, as where no speed is known
    assert quiet_rounds([base], slowest_ms=0.5).tolist() == kept.tolist()
    assert quiet_rounds([np.array([1.0, 2.0, 3.0, 4.0])]).all()


def test_rounds_of_another_repetition_are_no_neighbours() -> None:
    """The first quick round follows a loud repetition, but some seconds later."""
    loud, quick = np.full(20, 1.4), np.ones(20)
    assert quiet_rounds([loud, quick]).tolist() == [False] * 20 + [True] * 20
    assert not quiet_rounds([np.concatenate([loud, quick])])[20]
    # too few for two on either side: all the others of the repetition tell
    few = quiet_rounds([np.array([1.4, 1.4]), np.array([1.0]), quick])
    assert few.tolist() == [False, False] + [True] * 21


def test_it_looks_for_quiet_rounds_while_its_time_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins in a spell of two seconds; without knowing better it would end there, content."""
    monkeypatch.setenv("AUTOCOMPRESS_QUIET_WAIT_S", "0")  # rounds are taken meanwhile
    for speed, wanted in ((6.5, 0.5 * 1.6 / 1.3), (5.0, 0.5)):
        machine = Machine(noise=0.01)
        machine._ends = [0.0, 2.0]
        found = machine.take({"base": 5.0, "a": 2.5}, Plan(max_seconds=3.0), known(speed))
        assert found.narrow(Plan())
        assert found.interval(1, Plan())[0] == pytest.approx(wanted, rel=0.02)
        assert ((~found.used).sum() > 10) == (speed == 5.0)


@pytest.mark.parametrize(("count", "confidence"), [(40, 0.95), (15, 0.9)])
def test_the_interval_is_scipys_at_the_widened_level(count: int, confidence: float) -> None:
    rng = np.random.default_rng(4)
    base = rng.lognormal(0, 0.1, count)
    candidate = base * rng.lognormal(-0.3, 0.1, count)
    ratio, low, high = ratio_interval(candidate, base, confidence, resamples=40_000)
    wanted = scipy.stats.bootstrap(
        ((candidate / base),),
        np.median,
        n_resamples=40_000,
        method="percentile",
        confidence_level=1 - 2 * tail_share(count, confidence),
        random_state=np.random.default_rng(9),  # known to each version as that
    ).confidence_interval
    assert ratio == np.median(candidate / base)
    np.testing.assert_allclose([low, high], wanted, rtol=0.01)


def test_the_widening_follows_students_distribution() -> None:
    for count, confidence in [(6, 0.95), (12, 0.95), (30, 0.99)]:
        share = tail_share(count, confidence)
        quantile = scipy.stats.norm.ppf(share) / np.sqrt(count / (count - 1))
        assert scipy.stats.t.cdf(quantile, count - 1) == pytest.approx((1 - confidence) / 2)
    assert tail_share(10**6, 0.95) == pytest.approx(0.025, rel=1e-4)


def test_the_99th_percentile_is_that_of_single_calls() -> None:
    """Of lognormal times, it lies 2.326 standard deviations of their logarithm over the median."""
    plan = Plan(precision=1e-9, max_seconds=60.0)
    found = Machine(noise=0.1).take({"base": 1.0, "a": 0.5}, plan, known(1.0))
    np.testing.assert_allclose(found.tails, np.exp(2.326 * 0.1), rtol=0.03)
    assert Samples.from_dict(json.loads(json.dumps(found.as_dict()))).tails == pytest.approx(
        found.tails
    )


def test_of_few_calls_no_percentile_is_told() -> None:
    few = Machine().take({"base": 50.0, "a": 50.0}, Plan(max_seconds=1.0), known(50.0))
    assert np.isnan(few.tails).all()


@pytest.mark.parametrize("ms", [0.2, 50.0])
def test_single_calls_that_are_asked_for_are_timed_whatever_the_limit(ms: float) -> None:
    plan = Plan(max_seconds=1.0, single_calls=200)
    found = Machine(noise=0.05).take({"base": ms, "a": 2 * ms}, plan, known(ms))
    assert np.isfinite(found.tails).all()
    assert found.seconds < 100 * ms + 3

"""Interleaved timing on a clock that the test drives, and the interval against scipy's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from autocompress.measure import sampling
from autocompress.measure.sampling import (
    Plan,
    interleave,
    ratio_interval,
    tail_share,
    undisturbed,
    warm_up,
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

    def call(self, name: str, ms: float) -> Callable[[], None]:
        def run() -> None:
            factor = np.exp(self._noise * self._rng.standard_normal())
            slow = (1.3 if name == "base" else 1.6) if self.loud else 1.0
            self.now += ms / 1e3 * float(factor) * slow * (1 + self._drift * self.now)
            self.log.append(name)

        return run


def test_without_noise_the_times_are_exact() -> None:
    machine = Machine()
    calls = [machine.call("base", 2.0), machine.call("a", 1.0), machine.call("b", 5.0)]
    found = interleave(calls, Plan(min_rounds=8), machine.clock)
    np.testing.assert_allclose(found.rounds, np.tile([2.0, 1.0, 5.0], (len(found.rounds), 1)))
    assert found.narrow
    assert len(found.turns) == 2 * len(found.rounds)
    assert found.seconds == pytest.approx(machine.now)


def test_a_drifting_machine_leaves_the_ratio_alone() -> None:
    """Speed that falls by 3 % a second: rounds differ, but both calls of a round meet the same."""
    machine = Machine(drift=0.03)
    calls = [machine.call("base", 2.0), machine.call("a", 1.0)]
    found = interleave(calls, Plan(precision=1e-9, min_rounds=12, max_seconds=3), machine.clock)
    assert found.rounds[-1, 0] > 1.05 * found.rounds[0, 0]
    ratio, low, high = ratio_interval(found.rounds[:, 1], found.rounds[:, 0])
    assert ratio == pytest.approx(0.5, rel=2e-3)
    assert high - low < 5e-3


def test_every_round_visits_all_calls_there_and_back() -> None:
    machine = Machine()
    names = ["base", "a", "b"]
    interleave(
        [machine.call(n, 4.0) for n in names], Plan(min_rounds=4, slot_ms=1.0), machine.clock
    )
    # a turn is one call that does not count and one that does; the first turns belong to warm-up
    turns = [machine.log[i] for i in range(len(machine.log) - 2 * 24, len(machine.log), 2)]
    for start in range(0, len(turns), 6):
        there, back = turns[start : start + 3], turns[start + 3 : start + 6]
        assert sorted(there) == sorted(names)
        assert back == there[::-1]


def test_the_time_limit_ends_a_noisy_timing() -> None:
    machine = Machine(noise=0.5)
    calls = [machine.call("base", 1.0), machine.call("a", 1.0)]
    found = interleave(calls, Plan(precision=1e-6, max_seconds=1.0), machine.clock)
    assert not found.narrow
    assert found.seconds < 3.0


def test_slow_calls_get_a_few_rounds_whatever_the_limit() -> None:
    machine = Machine(noise=0.1)
    calls = [machine.call("base", 900.0), machine.call("a", 900.0)]
    found = interleave(calls, Plan(max_seconds=0.1), machine.clock)
    assert len(found.rounds) == 6


def test_warm_up_waits_until_calls_stop_getting_faster() -> None:
    machine = Machine()
    costs = iter([50.0] * 5 + [20.0] * 5 + [10.0] * 1000)

    def call() -> None:
        machine.now += next(costs) / 1e3

    assert warm_up(call, machine.clock) == pytest.approx(0.010)


def test_the_same_file_against_itself_is_called_different_as_often_as_stated() -> None:
    """A 95 % interval of 400 null experiments: the misses must fit a 5 % coin."""
    missed = 0
    for seed in range(400):
        machine = Machine(seed, noise=0.03)
        calls = [machine.call("base", 1.0), machine.call("a", 1.0)]
        found = interleave(calls, Plan(min_rounds=12, slot_ms=1.0), machine.clock)
        _, low, high = ratio_interval(found.rounds[:, 1], found.rounds[:, 0], resamples=500)
        missed += not low <= 1 <= high
    assert scipy.stats.binomtest(missed, 400, 0.05, alternative="greater").pvalue > 0.01
    assert missed > 0  # an interval that never misses would be too wide to tell anything


def test_a_true_difference_is_found() -> None:
    machine = Machine(1, noise=0.03)
    calls = [machine.call("base", 1.0), machine.call("a", 0.9)]
    found = interleave(calls, Plan(), machine.clock)
    ratio, low, high = ratio_interval(found.rounds[:, 1], found.rounds[:, 0])
    assert low < 0.9 < high < 1
    assert ratio == pytest.approx(0.9, abs=0.02)


def ratios(times: int, machines: Callable[[int], Machine], plan: Plan) -> list[float]:
    """Of a file that takes half as long, each on a machine of its own."""
    found = []
    for seed in range(times):
        machine = machines(seed)
        calls = [machine.call("base", 5.0), machine.call("a", 2.5)]
        taken = interleave(calls, plan, machine.clock)
        found.append(ratio_interval(taken.rounds[:, 1], taken.rounds[:, 0], resamples=2)[0])
    return found


def test_rounds_in_short_spells_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet and spells of 0.4 seconds in turn: how many of 100 timings are off by 5 %."""
    plan = Plan(max_seconds=3.0, slowest_ms=5.5)

    def off() -> int:
        found = ratios(100, lambda seed: Machine(seed, noise=0.02, spells=(0.4, 0.4)), plan)
        return sum(abs(r / 0.5 - 1) > 0.05 for r in found)

    assert off() <= 2
    monkeypatch.setattr(sampling, "undisturbed", lambda base, slowest_ms: base > 0)
    assert off() >= 10


def test_leaving_rounds_out_favours_nobody() -> None:
    """A file beside itself with a fifth of noise: the mean of 400 medians is 1 within 4 sigma.

    Rounds chosen by their own baseline would have the file look slower than it is.
    """
    found = 2 * np.array(ratios(400, lambda seed: Machine(seed, noise=0.2), Plan(max_seconds=1.0)))
    assert abs(found.mean() - 1) < 4 * found.std() / 20
    assert found.std() < 0.1


def test_a_round_counts_by_its_neighbours_alone() -> None:
    base = np.ones(30)
    base[10] = 9.0  # one slow round among quick ones tells nothing about its candidate
    base[20:] = 1.2
    kept = undisturbed(base)
    assert kept[:18].all()
    assert not kept[22:].any()
    assert undisturbed(base, slowest_ms=0.5).sum() >= 6  # nothing is that quick: some are kept
    assert undisturbed(np.array([1.0, 2.0, 3.0, 4.0])).all()


def test_a_sitting_looks_for_quiet_rounds_while_its_time_lasts() -> None:
    """It begins in a spell of two seconds; without knowing better it would end there, content."""
    for slowest, wanted in ((None, 0.5 * 1.6 / 1.3), (5.5, 0.5)):
        machine = Machine(noise=0.01)
        machine._ends = [0.0, 2.0]
        calls = [machine.call("base", 5.0), machine.call("a", 2.5)]
        found = interleave(calls, Plan(max_seconds=3.0, slowest_ms=slowest), machine.clock)
        assert found.narrow
        ratio = ratio_interval(found.rounds[:, 1], found.rounds[:, 0])[0]
        assert ratio == pytest.approx(wanted, rel=0.02)
        assert (found.left_out > 10) == (slowest is not None)


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
        rng=np.random.default_rng(9),
    ).confidence_interval
    assert ratio == np.median(candidate / base)
    np.testing.assert_allclose([low, high], wanted, rtol=0.01)


def test_the_widening_follows_students_distribution() -> None:
    for count, confidence in [(6, 0.95), (12, 0.95), (30, 0.99)]:
        share = tail_share(count, confidence)
        quantile = scipy.stats.norm.ppf(share) / np.sqrt(count / (count - 1))
        assert scipy.stats.t.cdf(quantile, count - 1) == pytest.approx((1 - confidence) / 2)
    assert tail_share(10**6, 0.95) == pytest.approx(0.025, rel=1e-4)

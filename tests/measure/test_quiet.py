"""Timings and kernel files on a machine that somebody else slows for seconds at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.estimate.tasks import Tasks
from autocompress.machine.waiting import seconds_from
from autocompress.measure.quiet import PATIENCE_S, WAIT_VARIABLE, QuietSpeed
from autocompress.measure.sampling import InterleavedTiming, Plan, Samples

_PATIENCE_S = 16.0
_TRUE_RATIO, _BASE_MS = 0.54, 4.0
_PLAN = Plan(min_rounds=8, max_seconds=3.0)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a study; the other tests do not wait."""
    monkeypatch.setenv("AUTOCOMPRESS_QUIET_WAIT_S", f"{_PATIENCE_S}")


class Machine:
    """A clock, and spells in which float code takes 1.4 and integer code 1.75 times as long.

    Args:
        spells: start and end of each, in seconds, in order.
        seed: of one percent of noise.
    """

    def __init__(self, spells: list[tuple[float, float]], seed: int = 0) -> None:
        self.now, self.edges = 0.0, np.ravel(spells)
        self.paused = 0.0
        self.rng = np.random.default_rng(seed)

    @property
    def loud(self) -> bool:
        return bool(np.searchsorted(self.edges, self.now, side="right") % 2)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.paused += seconds

    def clock(self) -> float:
        return self.now

    def run(self, ms: float, slow: float) -> None:
        self.now += ms / 1e3 * (slow if self.loud else 1.0) * self.rng.normal(1, 0.01)

    def calls(self) -> list[Callable[[], None]]:
        """The baseline in float and a candidate in integers."""
        candidate = partial(self.run, _TRUE_RATIO * _BASE_MS, 1.75)
        return [partial(self.run, _BASE_MS, 1.4), candidate]

    def time(self, quiet: QuietSpeed | None = None, plan: Plan = _PLAN) -> Samples:
        known = quiet or QuietSpeed()
        return InterleavedTiming(
            self.calls(), plan, known, pause=self.pause, clock=self.clock
        ).run()

    def sentinel(self) -> float:
        self.now += 0.02
        return (1.4 if self.loud else 1.0) * self.rng.normal(1, 0.01)


def ratio(found: Samples) -> float:
    return found.interval(1, _PLAN, resamples=2)[0]


def spells(rng: np.random.Generator, until: float) -> Iterator[tuple[float, float]]:
    """A third of the time, as on the machine where this was seen: 9 seconds on, 18 off."""
    now = 0.0
    while now < until:
        start = now + rng.exponential(18)
        now = start + rng.exponential(9)
        yield start, now


def test_a_tenth_over_the_lowest_decile_is_disturbed_and_old_speeds_are_forgotten() -> None:
    quiet = QuietSpeed()
    assert not quiet.disturbed(5.0)
    for ms in [1.0] * 5 + [1.3] * 20:
        quiet.note(ms)
    assert (quiet.disturbed(1.09), quiet.disturbed(1.11)) == (False, True)
    for _ in range(23):
        quiet.note(1.3)
    assert quiet.disturbed(1.3) is False  # two of thirty: slower for good


def test_one_lucky_timing_does_not_make_the_others_disturbed() -> None:
    quiet = QuietSpeed()
    for ms in [1.0] * 29 + [0.5]:
        quiet.note(ms)
    assert not quiet.disturbed(1.05)


def test_two_loud_repetitions_that_agree_are_not_believed() -> None:
    machine = Machine([(0.0, 6.0)])
    alone = machine.time()
    assert ratio(alone) == pytest.approx(_TRUE_RATIO * 1.25, rel=0.05)
    assert machine.now < 4.0
    machine, quiet = Machine([(0.0, 6.0)]), QuietSpeed()
    quiet.note(_BASE_MS)
    known = machine.time(quiet)
    assert ratio(known) == pytest.approx(_TRUE_RATIO, rel=0.01)
    assert not known.disturbed
    # the last look at the spell, a pause, a look; then two repetitions, for the first one was loud
    assert 6.0 < machine.now < 6.0 + 0.3 + 2 * 0.4 + _PLAN.apart_s
    assert len(known.repetitions) == 3
    assert 5.0 < known.waited_s < 6.3
    assert alone.waited_s == 0


def test_a_spell_between_two_quiet_repetitions_is_waited_for() -> None:
    machine, quiet = Machine([(0.6, 5.0)]), QuietSpeed()
    quiet.note(_BASE_MS)
    found = machine.time(quiet)  # quiet, loud, and quiet again
    assert ratio(found) == pytest.approx(_TRUE_RATIO, rel=0.01)
    assert len(found.repetitions) == 3
    assert machine.now > 5.0


def test_a_repetition_breaks_off_when_a_spell_begins_and_keeps_its_quiet_rounds() -> None:
    machine, quiet = Machine([(0.31, 5.0)]), QuietSpeed(deque([_BASE_MS] * 10))
    found = machine.time(quiet, replace(_PLAN, min_rounds=12))
    assert ratio(found) == pytest.approx(_TRUE_RATIO, rel=0.01)
    assert found.repetitions[0, 1] == pytest.approx(_TRUE_RATIO, rel=0.02)
    assert 3 < found.waited_s < 5
    rounds_in_the_spell = len(found.used) - int(found.used.sum())
    assert 3 <= rounds_in_the_spell <= 12


def test_one_quiet_repetition_is_enough_once_ten_have_shown_the_speed() -> None:
    machine, quiet = Machine([(30.0, 32.0)]), QuietSpeed()
    counts = [len(machine.time(quiet).repetitions) for _ in range(9)]
    assert machine.now < 30.0
    machine.now = 31.0
    counts.append(len(machine.time(quiet).repetitions))
    assert counts == [2, 2, 2, 2, 2, 1, 1, 1, 1, 2]


def test_repetitions_lie_apart_and_wait_for_the_end_of_a_spell() -> None:
    machine, quiet = Machine([(0.6, 5.0)]), QuietSpeed()
    quiet.note(_BASE_MS)
    InterleavedTiming(machine.calls(), _PLAN, quiet, machine.pause, machine.clock).run()
    assert machine.paused > 2.0
    assert machine.now > 5.0


def test_a_second_spell_is_waited_for_as_long_as_the_first() -> None:
    machine, quiet = Machine([(0.0, 12.0), (12.6, 25.0)]), QuietSpeed()
    quiet.note(_BASE_MS)
    found = machine.time(quiet)  # loud, quiet, loud, and quiet again
    assert len(found.repetitions) == 4
    assert not found.disturbed
    assert found.waited_s > _PATIENCE_S


def test_a_machine_that_stays_loud_ends_as_disturbed() -> None:
    machine, quiet = Machine([(0.0, 1e9)]), QuietSpeed()
    quiet.note(_BASE_MS)
    found = machine.time(quiet)
    assert found.disturbed
    # then rounds for as long as a repetition may last, as a quiet one might yet come
    assert machine.now == pytest.approx(_PATIENCE_S + _PLAN.max_seconds / 2 + 0.3, abs=0.5)
    assert len(found.repetitions) == 2
    assert found.narrow(_PLAN)


def test_patience_halves_with_every_wait_in_vain_and_comes_back() -> None:
    machine, quiet = Machine([(0.0, 60.0)]), QuietSpeed(deque([_BASE_MS] * 200))
    waits = [machine.time(quiet).waited_s for _ in range(5)]
    assert waits == [pytest.approx(_PATIENCE_S / 2**n, abs=0.6) for n in range(5)]
    machine.now = 61.0
    assert not machine.time(quiet).disturbed
    machine.edges = np.array([0.0, 1e9])
    assert machine.time(quiet).waited_s == pytest.approx(_PATIENCE_S, abs=0.6)


def test_waiting_ends_where_the_machine_has_become_slower_for_good() -> None:
    """After 28 of the 30 remembered repetitions; meanwhile patience has run out."""
    machine, quiet = Machine([(0.0, 1e9)]), QuietSpeed()
    for _ in range(30):
        quiet.note(_BASE_MS)
    disturbed = [machine.time(quiet).disturbed for _ in range(30)]
    assert disturbed[0]
    assert not any(disturbed[28:])
    assert machine.paused < 2 * _PATIENCE_S


def test_a_study_among_spells_keeps_its_ratios() -> None:
    """Of 200 trials with four seconds of other work each, those over by a tenth.

    Without memory about a fifth are; with it, those that are called disturbed may be.
    """
    counts = {}
    for remembers in (False, True):
        machine = Machine(list(spells(np.random.default_rng(1), 1e4)))
        quiet = QuietSpeed()
        wrong = called = 0
        for _ in range(200):
            found = machine.time(quiet if remembers else None)
            machine.now += 4.0
            wrong += ratio(found) > 1.1 * _TRUE_RATIO and not found.disturbed
            called += found.disturbed
        counts[remembers] = wrong, called
    assert counts[False][0] > 20
    assert counts[True][0] == 0
    assert counts[True][1] < 20


class Scripted(Machine):
    """Every pause brings the next ratio and milliseconds of the baseline; in the end the first."""

    def __init__(self, script: list[tuple[float, float]]) -> None:
        super().__init__([])
        self.script, self.place = script, 0

    def pause(self, seconds: float) -> None:
        super().pause(seconds)
        self.place = (self.place + 1) % len(self.script)

    def calls(self) -> list[Callable[[], None]]:
        def play(candidate: bool) -> None:
            ratio, ms = self.script[self.place]
            self.now += ms / 1e3 * (ratio if candidate else 1.0)

        return [partial(play, False), partial(play, True)]


@pytest.mark.parametrize(
    ("script", "repetitions", "wanted"),
    [
        # two that agree are enough
        ([(0.45, 0.74), (0.46, 0.73), (9.0, 0.1)], 2, 0.455),
        # the slow spell comes first, in the middle, or is all there is but for the end
        ([(0.58, 0.83), (0.45, 0.75), (0.46, 0.74)], 3, 0.455),
        ([(0.45, 0.74), (0.58, 0.82), (0.44, 0.75)], 3, 0.445),
        ([(0.58, 0.83), (0.45, 0.75), (0.59, 0.84), (0.60, 0.85), (0.46, 0.76)], 4, 0.455),
        # two slow ones agree with each other, but not with the quietest
        ([(0.45, 0.74), (0.58, 0.82), (0.58, 0.83), (0.45, 0.75)], 3, 0.45),
        # the slow spell hardly slows the baseline, too little for a single round to tell
        ([(0.58, 0.79), (0.45, 0.74), (0.46, 0.74)], 3, 0.455),
    ],
)
def test_repetitions_in_which_the_baseline_ran_quickly_count(
    script: list[tuple[float, float]], repetitions: int, wanted: float
) -> None:
    found = Scripted(script).time()
    assert len(found.repetitions) == repetitions
    assert ratio(found) == pytest.approx(wanted, abs=0.006)
    assert not found.disturbed


def test_where_nothing_ever_agrees_the_time_ends_it() -> None:
    """Every repetition gives another ratio at the same speed: the interval tells, and it ends."""
    machine = Scripted([(0.4, 0.75), (0.5, 0.74), (0.6, 0.73), (0.7, 0.74), (0.8, 0.75)])
    found = machine.time()
    assert not found.narrow(_PLAN)
    assert machine.now < (_PLAN.max_seconds + 1) + _PLAN.apart_s * len(found.repetitions)


@pytest.mark.parametrize("seed", range(20))
def test_every_task_is_done_in_quiet_or_named(seed: int) -> None:
    """Tasks keep their best time: those not named have the quiet one, within the noise."""
    rng = np.random.default_rng(seed)
    machine = Machine(list(spells(rng, 200)), seed)
    best: dict[int, float] = {}

    def task(i: int) -> Callable[[], None]:
        def work() -> None:
            machine.now += 0.2
            ms = 2.0 if machine.loud else 1.0
            best[i] = min(ms, best.get(i, ms))

        return work

    tasks = [task(i) for i in range(60)]
    named = Tasks(tasks, machine.sentinel, machine.pause, machine.clock).run()
    quiet = [ms for i, ms in best.items() if i not in named]
    assert len(best) == 60
    # a spell that begins and ends within a task's 0.2 s is seen by no sentinel: 0.1 % of them
    assert quiet == [1.0] * (60 - len(named))


def test_a_quiet_machine_does_every_task_once_and_a_loud_one_gives_up() -> None:
    done: list[int] = []
    tasks = [partial(done.append, i) for i in range(5)]
    machine = Machine([])
    assert Tasks(tasks, lambda: 1.0, machine.pause, machine.clock).run() == []
    assert done == [0, 1, 2, 3, 4]
    assert machine.paused == 0
    speeds = deque([1.0] * 4)  # before the tasks, and after the first three

    def speed() -> float:
        return speeds.popleft() if speeds else 2.0

    assert Tasks(tasks, speed, machine.pause, machine.clock).run() == [3, 4]
    assert done[5:] == [0, 1, 2, 3, 4]
    assert machine.paused == _PATIENCE_S


def test_a_task_that_disturbs_itself_is_tried_five_times_and_named() -> None:
    """Every look is quick but the one after it, so that nothing is waited for in vain."""
    done: list[int] = []
    machine = Machine([])

    def sentinel() -> float:
        slow = bool(done) and done.pop() == 2
        return 2.0 if slow else 1.0

    tries = [0] * 4

    def work(i: int) -> None:
        done.append(i)
        tries[i] += 1

    tasks = [partial(work, i) for i in range(4)]
    assert Tasks(tasks, sentinel, machine.pause, machine.clock).run() == [2]
    assert tries == [1, 1, 5, 1]
    assert machine.paused == 0


def test_patience_ends_however_often_it_was_in_vain() -> None:
    """A long study on a machine that is never quiet goes on."""
    machine, quiet = Machine([(0.0, 60.0)]), QuietSpeed(deque([_BASE_MS] * 200), in_vain=5000)
    assert quiet.patience_s == 0.0
    assert machine.time(quiet).waited_s == pytest.approx(0.0, abs=0.6)


def test_how_long_it_may_wait_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMPRESS_QUIET_WAIT_S")
    assert QuietSpeed().patience_s == 16.0
    monkeypatch.setenv("AUTOCOMPRESS_QUIET_WAIT_S", "2.5")
    assert QuietSpeed(in_vain=1).patience_s == 1.25
    for wrong in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("AUTOCOMPRESS_QUIET_WAIT_S", wrong)
        with pytest.raises(InputError, match="seconds, 0 or more"):
            seconds_from(WAIT_VARIABLE, PATIENCE_S)

"""Sittings and kernel files on a machine that somebody else slows for seconds at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from autocompress.measure import quiet as quiet_module
from autocompress.measure.latency import Timing, settle
from autocompress.measure.quiet import QuietSpeed, in_quiet

_PATIENCE_S = 16.0
_TRUE_RATIO, _BASE_MS = 0.54, 0.69


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a study; the other tests do not wait."""
    monkeypatch.setattr(quiet_module, "PATIENCE_S", _PATIENCE_S)


class Machine:
    """A clock, and spells in which float code takes 1.4 and integer code 1.75 times as long.

    Args:
        spells: start and end of each, in seconds.
        seed: of one percent of noise.
    """

    def __init__(self, spells: list[tuple[float, float]], seed: int = 0) -> None:
        self.now, self.spells = 0.0, spells
        self.paused = 0.0
        self.quiet = QuietSpeed()
        self.rng = np.random.default_rng(seed)

    @property
    def loud(self) -> bool:
        return any(start <= self.now < end for start, end in self.spells)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.paused += seconds

    def clock(self) -> float:
        return self.now

    def settle(self, first: Timing, quiet: QuietSpeed | None) -> Timing:
        self.quiet = quiet if quiet is not None else QuietSpeed()
        return settle(first, self, self.pause, self.clock)

    @contextmanager
    def watch(self) -> Iterator[Callable[[], float]]:
        yield lambda: _BASE_MS * self.sentinel()

    def __call__(self) -> Timing:
        slow_float, slow_integer = (1.4, 1.75) if self.loud else (1.0, 1.0)
        base = _BASE_MS * slow_float * self.rng.normal(1, 0.01)
        ratio = _TRUE_RATIO * slow_integer / slow_float * self.rng.normal(1, 0.01)
        self.now += 0.4
        return Timing(ratio * base, 0, base, 0, ratio, ratio, ratio, 0.95, False, 12, 0.4, 1, 1)

    def sentinel(self) -> float:
        self.now += 0.02
        return (1.4 if self.loud else 1.0) * self.rng.normal(1, 0.01)


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


def test_two_loud_sittings_that_agree_are_not_believed() -> None:
    machine = Machine([(0.0, 6.0)])
    alone = machine.settle(machine(), None)
    assert alone.ratio == pytest.approx(_TRUE_RATIO * 1.25, rel=0.05)
    machine, quiet = Machine([(0.0, 6.0)]), QuietSpeed()
    quiet.note(_BASE_MS)
    known = machine.settle(machine(), quiet)
    assert known.ratio == pytest.approx(_TRUE_RATIO, rel=0.05)
    assert not known.disturbed
    # the last look at the spell, a pause, a look; then two sittings, for the first one was loud
    assert 6.0 < machine.now < 6.0 + 0.3 + 2 * 0.4 + 0.05
    assert len(known.facts["sittings"]) == 3
    # all of it but for the sittings
    assert known.facts["waited_s"] == pytest.approx(machine.now - 3 * 0.4)
    assert alone.facts["waited_s"] == 0


def test_a_spell_between_two_quiet_sittings_is_waited_for() -> None:
    machine, quiet = Machine([(0.3, 5.0)]), QuietSpeed()
    quiet.note(_BASE_MS)
    found = machine.settle(machine(), quiet)  # quiet, loud, and quiet again
    assert found.ratio == pytest.approx(_TRUE_RATIO, rel=0.05)
    assert len(found.facts["sittings"]) == 3
    assert machine.now > 5.0


def test_one_quiet_sitting_is_enough_once_ten_have_shown_the_speed() -> None:
    machine, quiet = Machine([(10.0, 12.0)]), QuietSpeed()
    counts = []
    for _ in range(9):
        counts.append(len(machine.settle(machine(), quiet).facts["sittings"]))
    machine.now = 11.0
    counts.append(len(machine.settle(machine(), quiet).facts["sittings"]))
    assert counts == [2, 2, 2, 2, 2, 1, 1, 1, 1, 2]


def test_a_machine_that_stays_loud_ends_as_disturbed() -> None:
    machine, quiet = Machine([(0.0, 1e9)]), QuietSpeed()
    quiet.note(_BASE_MS)
    found = machine.settle(machine(), quiet)
    assert found.disturbed
    assert found.as_dict()["disturbed"]
    assert machine.now == pytest.approx(_PATIENCE_S + 2 * 0.4, abs=0.5)
    assert len(found.facts["sittings"]) == 2


def test_patience_halves_with_every_wait_in_vain_and_comes_back() -> None:
    machine, quiet = Machine([(0.0, 40.0)]), QuietSpeed()
    quiet.note(_BASE_MS)
    waits = []
    for _ in range(5):
        start = machine.now
        found = quiet.wait(lambda: _BASE_MS * machine.sentinel(), machine.pause, machine.clock)
        waits.append((machine.now - start, found))
    assert waits == [(pytest.approx(_PATIENCE_S / 2**n, abs=0.3), False) for n in range(5)]
    machine.now = 41.0
    assert quiet.wait(lambda: _BASE_MS * machine.sentinel(), machine.pause, machine.clock)
    machine.spells = [(0.0, 1e9)]
    start = machine.now
    assert not quiet.wait(lambda: _BASE_MS * machine.sentinel(), machine.pause, machine.clock)
    assert machine.now - start == pytest.approx(_PATIENCE_S, abs=0.3)


def test_waiting_ends_where_the_machine_has_become_slower_for_good() -> None:
    """After 28 of the 30 remembered sittings, two a trial; meanwhile patience has run out."""
    machine, quiet = Machine([(0.0, 1e9)]), QuietSpeed()
    for _ in range(30):
        quiet.note(_BASE_MS)
    disturbed = [machine.settle(machine(), quiet).disturbed for _ in range(20)]
    assert disturbed[0]
    assert not any(disturbed[14:])
    assert machine.paused < 2 * _PATIENCE_S


def test_a_study_among_spells_keeps_its_ratios() -> None:
    """Of 400 trials with four seconds of other work each, those over by a tenth.

    Without memory about a fifth are; with it, those that ``settle`` itself calls disturbed may be.
    """
    counts = {}
    for remembers in (False, True):
        machine = Machine(list(spells(np.random.default_rng(1), 1e5)))
        quiet = QuietSpeed()
        wrong = called = 0
        for _ in range(400):
            first = machine()
            machine.now += 1.5
            found = machine.settle(first, quiet if remembers else None)
            machine.now += 2.5
            wrong += found.ratio > 1.1 * _TRUE_RATIO and not found.disturbed
            called += found.disturbed
        counts[remembers] = wrong, called
    assert counts[False][0] > 40
    assert counts[True][0] == 0
    assert counts[True][1] < 40


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
    named = in_quiet(tasks, machine.sentinel, machine.pause, machine.clock)
    quiet = [ms for i, ms in best.items() if i not in named]
    assert len(best) == 60
    # a spell that begins and ends within a task's 0.2 s is seen by no sentinel: 0.1 % of them
    assert quiet == [1.0] * (60 - len(named))


def test_a_quiet_machine_does_every_task_once_and_a_loud_one_gives_up() -> None:
    done: list[int] = []
    tasks = [partial(done.append, i) for i in range(5)]
    machine = Machine([])
    assert in_quiet(tasks, lambda: 1.0, machine.pause, machine.clock) == []
    assert done == [0, 1, 2, 3, 4]
    assert machine.paused == 0
    speeds = deque([1.0] * 4)  # before the tasks, and after the first three

    def speed() -> float:
        return speeds.popleft() if speeds else 2.0

    assert in_quiet(tasks, speed, machine.pause, machine.clock) == [3, 4]
    assert done[5:] == [0, 1, 2, 3, 4]
    assert machine.paused == _PATIENCE_S

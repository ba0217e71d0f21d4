"""The lock between real processes: one timing at a time, computing that pauses, nobody stuck."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable

import pytest
from lock_processes import COMPUTING, TIMING, Other
from tiny_study import until

from autocompress.machine import lock
from autocompress.machine.lock import after_timing, timing_lock
from autocompress.machine.waiting import ends_within, outside_wait_s


def held(seconds: float = 5.0) -> bool:
    """Whether this thread gets the lock within some seconds."""
    reached = threading.Event()

    def take() -> None:
        with timing_lock():
            reached.set()

    threading.Thread(target=take, daemon=True).start()
    return reached.wait(seconds)


def test_two_timings_take_turns(start: Callable[[str], Other]) -> None:
    first = start(TIMING)
    assert first.reaches("holding")
    second = start(TIMING)
    assert not second.reaches("holding", 0.3)
    first.let_go()
    assert second.reaches("holding")


def test_computing_pauses_while_somebody_times(start: Callable[[str], Other]) -> None:
    timer = start(TIMING)
    assert timer.reaches("holding")
    worker = start(COMPUTING)
    assert not worker.reaches("holding", 0.3)
    timer.let_go()
    assert worker.reaches("holding")


def test_computing_keeps_no_timing_waiting(start: Callable[[str], Other]) -> None:
    """A hung metric, too: whoever computes holds nothing."""
    after_timing()
    assert start(TIMING).reaches("holding")


@pytest.mark.parametrize("code", [TIMING, COMPUTING])
def test_a_killed_holder_frees_the_lock(start: Callable[[str], Other], code: str) -> None:
    dead = start(TIMING)
    assert dead.reaches("holding")
    dead.kill()
    assert start(code).reaches("holding")


def test_it_can_be_taken_again_by_its_own_thread() -> None:
    with timing_lock():
        with timing_lock():
            after_timing()
        assert not held(0.3)
    assert held()


@pytest.mark.parametrize("wait", [timing_lock, after_timing])
def test_no_time_limit_counts_the_wait_for_another_process(
    start: Callable[[str], Other], wait: Callable[[], object]
) -> None:
    before, holder, counted = outside_wait_s(), start(TIMING), threading.Event()
    assert holder.reaches("holding")

    def end() -> None:
        if until(lambda: outside_wait_s() > before + 0.5, 20):
            counted.set()
        holder.let_go()

    threading.Thread(target=end).start()
    if wait is after_timing:
        after_timing()
    else:
        with timing_lock():
            pass
    assert counted.is_set()


def test_nobody_waits_beyond_the_end_of_a_studys_time(
    start: Callable[[str], Other], caplog: pytest.LogCaptureFixture
) -> None:
    holder = start(TIMING)
    assert holder.reaches("holding")
    with ends_within(0.3), timing_lock():
        pass
    assert "timing beside process" in caplog.text


def test_an_exception_inside_frees_it() -> None:
    with pytest.raises(ZeroDivisionError), timing_lock():
        raise ZeroDivisionError
    assert held()


def test_another_thread_of_the_same_process_pauses() -> None:
    reached = threading.Event()

    def compute() -> None:
        after_timing()
        reached.set()

    with timing_lock():
        thread = threading.Thread(target=compute)
        thread.start()
        assert not reached.wait(0.2)
    assert reached.wait(10)
    thread.join()


@pytest.mark.parametrize("wait", [timing_lock, after_timing])
def test_a_wait_says_for_whom_and_how_long(
    start: Callable[[str], Other],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait: Callable[[], object],
) -> None:
    monkeypatch.setattr(lock, "_FIRST_WORD_S", 0.2)
    monkeypatch.setattr(lock, "_NEXT_WORD_S", 0.5)
    monkeypatch.setattr(lock._Told, "at", -math.inf)
    caplog.set_level(logging.INFO, "autocompress.machine.lock")
    holder = start(TIMING)
    assert holder.reaches("holding")
    threading.Timer(1.6, holder.let_go).start()
    if wait is after_timing:
        after_timing()
    else:
        with timing_lock():
            pass
    said = [record.getMessage() for record in caplog.records]
    pattern = (
        rf"waiting for process {holder.process.pid} \(-c search quickstart\), "
        r"which has been timing for (\d+) s; waited for (\d+) s so far"
    )
    assert len(said) >= 2
    matches = [re.fullmatch(pattern, text) for text in said]
    assert all(matches), said
    assert [int(m[2]) for m in matches if m] == sorted(int(m[2]) for m in matches if m)


def test_one_of_many_short_waits_is_told(
    start: Callable[[str], Other],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A longer one is told all the same."""
    monkeypatch.setattr(lock, "_FIRST_WORD_S", 0.2)
    monkeypatch.setattr(lock, "_LONGEST_S", 0.5)
    monkeypatch.setattr(lock._Told, "at", -math.inf)
    caplog.set_level(logging.INFO, "autocompress.machine.lock")
    holder = start(TIMING)
    assert holder.reaches("holding")

    def words() -> int:
        with timing_lock():
            pass
        return sum(record.levelno == logging.INFO for record in caplog.records)

    assert [words() for _ in range(3)] == [1, 1, 1]
    monkeypatch.setattr(lock, "_NEXT_WORD_S", 0.5)
    monkeypatch.setattr(lock, "_LONGEST_S", 1.5)
    assert words() > 1
    holder.let_go()


def test_short_waits_and_free_locks_say_nothing(
    start: Callable[[str], Other], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "autocompress.machine.lock")
    holder = start(TIMING)
    assert holder.reaches("holding")
    threading.Timer(0.2, holder.let_go).start()
    with timing_lock():
        pass
    after_timing()
    assert caplog.records == []


def test_who_holds_it_for_too_long_is_passed_by(
    start: Callable[[str], Other],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stopped process of whoever it be stops no study: computing goes on, then timing, too."""
    monkeypatch.setattr(lock, "_PAUSE_S", 0.5)
    monkeypatch.setattr(lock, "_LONGEST_S", 1.0)
    holder = start(TIMING)
    assert holder.reaches("holding")
    begin = time.monotonic()
    for _ in range(50):
        after_timing()
    assert time.monotonic() - begin < 5.0  # one pause, not fifty
    with timing_lock():
        assert "released" not in holder.said
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith(f"timing beside process {holder.process.pid}")

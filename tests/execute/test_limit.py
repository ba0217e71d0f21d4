"""Whatever an evaluation does, it ends: loops, sleeps, locks, code that catches everything."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from analytic import AnalyticEvaluator, jobs, numbered

from autocompress.controller.limits import Durations
from autocompress.execute import limit
from autocompress.execute.limit import TookTooLong, time_limit
from autocompress.execute.local import InProcessExecutor
from autocompress.machine import waiting
from autocompress.machine.waiting import (
    ends_within,
    outside_wait,
    outside_wait_s,
    seconds_to_end,
)
from autocompress.policy.policy import Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState


def loop() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(60)


def wait() -> None:
    threading.Event().wait()


def stubborn() -> None:
    """As users' code does that tries again whatever happens."""
    for _ in range(1000):
        try:
            time.sleep(60)
        except Exception:
            continue


HANGS = [loop, sleep, wait, stubborn]


def fails(text: str = "", **more: object) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize("hang", HANGS)
def test_what_hangs_in_the_main_thread_is_interrupted(hang: Callable[[], None]) -> None:
    start = time.monotonic()
    with pytest.raises(TookTooLong), time_limit(0.3, fails):
        hang()
    assert time.monotonic() - start < 10


def test_the_end_itself_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow: a signal that nobody answers any more would end this process."""
    end = limit._Limit._end

    def slow(self: limit._Limit) -> None:
        until = time.monotonic() + 2.5  # two more signals come
        while time.monotonic() < until:
            pass
        end(self)

    monkeypatch.setattr(limit._Limit, "_end", slow)
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(TookTooLong), time_limit(0.3, fails):
        loop()
    assert signal.getsignal(signal.SIGUSR2) == before
    time.sleep(1.5)


def test_the_end_in_another_thread_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the limit is never over: what the thread does later would be interrupted again."""
    end, told = limit._Limit._end, []

    def slow(self: limit._Limit) -> None:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            pass
        end(self)

    def work() -> None:
        try:
            with time_limit(0.2, fails):
                loop()
        except TookTooLong:
            told.append("over")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            pass
        told.append("went on")

    monkeypatch.setattr(limit._Limit, "_end", slow)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == ["over", "went on"]


@pytest.mark.parametrize("edge", ["start", "_end"])
def test_ctrl_c_as_a_limit_begins_or_ends_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    """Neither a watch that interrupts what comes later, nor its answer to the signal."""
    whose: type = threading.Thread if edge == "start" else limit._Limit
    usual, asked = getattr(whose, edge), []

    def interrupted(self: object) -> None:
        if edge == "start" or asked:  # a start waits until the thread has begun
            usual(self)
        if not asked:
            asked.append(edge)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGUSR2)
    monkeypatch.setattr(whose, edge, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), time_limit(0.2, fails):
            pass
        time.sleep(0.6)
        assert signal.getsignal(signal.SIGUSR2) == before
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_system_that_gives_no_further_thread_keeps_its_answer_to_the_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = signal.getsignal(signal.SIGUSR2)
    monkeypatch.setattr(threading.Thread, "start", none)
    with pytest.raises(RuntimeError, match="thread"), time_limit(10.0, fails):
        pass
    try:
        assert signal.getsignal(signal.SIGUSR2) == before
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_time_that_is_over_at_once_leaves_nothing_behind() -> None:
    """The first ring may come while the limit itself begins."""
    before = signal.getsignal(signal.SIGUSR2)
    for _ in range(5):
        with pytest.raises(TookTooLong), time_limit(0.0, fails):
            loop()
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_loop_in_another_thread_is_interrupted() -> None:
    ended = threading.Event()

    def work() -> None:
        try:
            with time_limit(0.3, fails):
                loop()
        except TookTooLong:
            ended.set()

    threading.Thread(target=work, daemon=True).start()
    assert ended.wait(10)


def test_what_ends_in_time_hears_nothing_of_it() -> None:
    for _ in range(20):
        begin = time.monotonic()
        try:
            with time_limit(0.05, fails):
                time.sleep(0.03)
        except TookTooLong:  # on a busy machine it does not end in time
            assert time.monotonic() - begin > 0.05
    time.sleep(0.3)


def test_native_code_that_never_comes_back_is_given_up() -> None:
    """It holds the interpreter up in C, where no exception reaches it."""
    code = """
import ctypes, os
from autocompress.execute import limit

limit._GRACE_S = 0.5
libc, nobody = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(nobody)
with limit.time_limit(0.3, lambda: os._exit(7)):
    libc.pthread_mutex_lock(nobody)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7


class Hanging(AnalyticEvaluator):
    """Hangs at every second policy, in one of the ways."""

    hang: Callable[[], None] = staticmethod(loop)

    def evaluate(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Measurement:
        if int(policy.digest[:8], 16) % 2:
            type(self).hang()
        return super().evaluate(policy, phase, seed)


@pytest.mark.parametrize("hang", HANGS)
def test_a_hung_evaluation_fails_its_trial_alone(
    hang: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hanging, "hang", staticmethod(hang))
    executor = InProcessExecutor(Hanging(), fails)
    todo = [numbered(job, job.number, limit_s=0.4) for job in jobs(6)]
    for job in todo:
        executor.submit(job)
    found = [executor.wait() for _ in todo]
    hung = [int(job.policy.digest[:8], 16) % 2 == 1 for job in todo]
    assert 0 < sum(hung) < 6
    for outcome, expected in zip(found, hung, strict=True):
        assert outcome is not None
        assert (outcome.measurement is None) == expected
        assert ("longer than 0.4 s" in outcome.error) == expected
        assert ("search.trial_timeout_s" in outcome.error) == expected


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), TimeoutError("x")])
def test_whatever_an_evaluation_throws_fails_its_trial(error: BaseException) -> None:
    class Throwing(AnalyticEvaluator):
        def evaluate(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Measurement:
            raise error

    executor = InProcessExecutor(Throwing())
    executor.submit(jobs(1)[0])
    outcome = executor.wait()
    assert outcome is not None
    assert type(error).__name__ in outcome.error


def trial(seconds: float, phase: Phase = SEARCH) -> Trial:
    return Trial(0, Policy(), phase, TrialState.COMPLETE, seconds=seconds)


def test_limits_are_generous_and_follow_what_trials_took() -> None:
    train = Phase("recover", 4.0, 1)
    assert Durations([]).limit_s(5.0, SEARCH) == 5.0
    assert Durations([]).limit_s(None, SEARCH) == 3600
    assert Durations([trial(2.0)]).limit_s(None, SEARCH) == 600
    assert Durations([trial(50.0), trial(2.0)]).limit_s(None, SEARCH) == 1000
    # training is not judged by how long an untrained evaluation took
    assert Durations([trial(10.0)]).limit_s(None, train) == 3600 + 8000 + 200
    assert Durations([trial(10.0), trial(500.0, train)]).limit_s(None, train) == 10_000
    failed = Trial(0, Policy(), SEARCH, TrialState.FAILED, seconds=1e6)
    assert Durations([failed]).limit_s(None, SEARCH) == 3600


def test_waits_for_something_outside_do_not_count() -> None:
    def work(seconds: float) -> None:
        with outside_wait():
            time.sleep(1.5)
        time.sleep(seconds)

    with time_limit(0.6, lambda: None):
        work(0.1)
    with pytest.raises(TookTooLong), time_limit(0.6, lambda: None):
        work(5.0)


def test_a_wait_that_is_interrupted_as_it_ends_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or no time limit of this process would ever be over again."""

    def interrupted() -> float:
        raise TookTooLong

    with pytest.raises(TookTooLong), monkeypatch.context() as patch, outside_wait():
        patch.setattr(waiting.time, "monotonic", interrupted)
    before = outside_wait_s()
    time.sleep(0.01)
    assert outside_wait_s() == before


def test_nothing_outside_is_waited_for_beyond_a_studys_end() -> None:
    assert seconds_to_end() == math.inf
    with ends_within(10.0):
        assert 9.0 < seconds_to_end() <= 10.0
        with ends_within(-1.0):
            assert seconds_to_end() == 0.0
    assert seconds_to_end() == math.inf

"""Files are timed together, while no worker computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from analytic import AnalyticEvaluator, jobs

from autocompress.controller.protocols import Job, Outcome
from autocompress.execute.timing import TimingExecutor
from autocompress.results.metric import Measurement


class Workers:
    """Workers in this process, which answer in the order of the jobs."""

    slots, away = 2, False

    def __init__(self, failing: Sequence[int] = (), seconds: float = 1.0) -> None:
        self.failing, self.seconds = failing, seconds
        self.running: deque[Job] = deque()
        self.closed: list[bool] = []

    def submit(self, job: Job) -> None:
        assert len(self.running) < self.slots
        self.running.append(job)

    def wait(self, timeout: float | None = None) -> Outcome | None:
        if not self.running:
            return None
        job = self.running.popleft()
        if job.number in self.failing:
            return Outcome(job, None, "it failed", self.seconds)
        return Outcome(job, None, seconds=self.seconds, scored=(job.number, self))

    def close(self, *, cancel: bool = False) -> None:
        self.closed.append(cancel)


class Timer(AnalyticEvaluator):
    """Notes what is timed together; may stumble over a file."""

    def __init__(self, broken: Sequence[int] = ()) -> None:
        super().__init__()
        self.broken, self.together = broken, []

    def timed(self, scored: Sequence[Any]) -> list[Measurement]:
        if any(workers.seconds > 10 for _, workers in scored):
            assert all(not workers.running for _, workers in scored), "a worker computes"
        numbers = [number for number, _ in scored]
        self.together.append(numbers)
        if set(numbers) & set(self.broken):
            raise RuntimeError("a broken file")
        return [Measurement({"accuracy": 0.5, "latency_ms": float(n)}) for n in numbers]


def answers(executor: TimingExecutor, todo: Sequence[Job]) -> dict[int, Outcome]:
    queue, found, running = deque(todo), {}, 0
    while queue or running:
        while queue and running < executor.slots:
            executor.submit(queue.popleft())
            running += 1
        outcome = executor.wait(1.0)
        assert outcome is not None
        found[outcome.job.number] = outcome
        running -= 1
    return found


@pytest.mark.parametrize(("seconds", "groups"), [(1.0, [1, 4, 4, 1]), (30.0, [4, 4, 2])])
def test_files_are_timed_together(seconds: float, groups: list[int]) -> None:
    """The first at once, then four; all that are under way where jobs are long."""
    timer = Timer()
    found = answers(TimingExecutor(Workers(seconds=seconds), timer), jobs(10))
    assert {n: o.measurement["latency_ms"] for n, o in found.items() if o.measurement} == {
        n: float(n) for n in range(10)
    }
    assert all(o.scored is None and o.error == "" and o.seconds >= 1.0 for o in found.values())
    assert sorted(n for group in timer.together for n in group) == list(range(10))
    assert [len(group) for group in timer.together] == groups


@pytest.mark.parametrize("bad", [[0], [1, 2], list(range(6))])
def test_a_failure_costs_its_own_job(bad: list[int]) -> None:
    for workers, timer, why in (
        (Workers(bad), Timer(), "it failed"),
        (Workers(), Timer(bad), "a broken file"),
    ):
        found = answers(TimingExecutor(workers, timer), jobs(6))
        assert {n for n, o in found.items() if why in o.error} == set(bad)
        assert {n for n, o in found.items() if o.measurement is None} == set(bad)


def test_one_job_is_timed_without_waiting_for_more() -> None:
    executor = TimingExecutor(Workers(), Timer())
    assert executor.wait(0.0) is None
    executor.submit(jobs(1)[0])
    outcome = executor.wait(1.0)
    assert outcome is not None
    assert outcome.measurement is not None
    assert executor.wait(0.0) is None


@pytest.mark.parametrize("cancel", [False, True])
def test_it_ends_its_workers(cancel: bool) -> None:
    workers = Workers()
    executor = TimingExecutor(workers, Timer())
    for job in jobs(4):
        executor.submit(job)
    executor.close(cancel=cancel)
    assert workers.closed == [cancel]

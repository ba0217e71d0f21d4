"""Workers score, this process times: several files at once, while no worker computes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Protocol

from autocompress.controller.protocols import DividedEvaluator, Executor, Job, Outcome
from autocompress.errors import DeviceLost
from autocompress.execute.local import failed

_FILES = 2
"""Files per worker that are timed together."""
_SHORT_S = 10.0
"""Jobs that take no longer pause soon where a timing begins in the middle of them."""


class Workers(Executor, Protocol):
    """An executor whose outcomes hold what waits to be timed (``Outcome.scored``)."""

    @property
    def away(self) -> bool:
        """Whether all of them compute on other machines, where they disturb no timing here."""


class TimingExecutor:
    """Has workers score jobs, and times what they made.

    A worker that computes slows a timing beside it, and one that times would keep the others
    waiting. So files are collected while workers compute, and timed together while they rest: they
    share the rounds of the uncompressed model, too. Workers pause between batches while somebody
    times (``machine.lock.after_timing``), so that nobody waits for the last of them; only where
    jobs are long, and so are the stretches between their pauses, do all end theirs first. The first
    file is timed at once: people wait for it. Workers on other machines need no rest.

    Args:
        workers: answer with ``scored``.
        evaluator: times.
    """

    def __init__(self, workers: Workers, evaluator: DividedEvaluator) -> None:
        self._together = _FILES * workers.slots
        self.slots = self._together + workers.slots  # files that wait, and jobs under way
        self._workers, self._evaluator = workers, evaluator
        self._queue: deque[Job] = deque()
        self._running = 0
        self._scored: list[Outcome] = []
        self._done: deque[Outcome] = deque()
        self._timed_any = self._long = False

    def submit(self, job: Job) -> None:
        """Start a job, or queue it."""
        self._queue.append(job)
        self._start()

    def _start(self) -> None:
        room = self._together if self._long and not self._workers.away else self.slots
        under_way = self._running + len(self._scored)
        for _ in range(
            min(len(self._queue), self._workers.slots - self._running, room - under_way)
        ):
            self._workers.submit(self._queue.popleft())
            self._running += 1

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The next job that is finished, its file timed."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._done:
            if self._scored and self._may_time():
                self._done += self._timed(self._scored)
                self._scored = []
                self._start()
                break
            if not self._running:
                break
            left = None if end is None else max(0.0, end - time.monotonic())
            outcome = self._workers.wait(left)
            if outcome is None:
                return None
            self._running -= 1
            if outcome.scored is None:
                self._done.append(outcome)
            else:
                self._scored.append(outcome)
                self._long = outcome.seconds > _SHORT_S
            self._start()
        return self._done.popleft() if self._done else None

    def _may_time(self) -> bool:
        """Whether there are files enough, and no worker is in the middle of something long."""
        if not self._running or self._workers.away:
            return True
        if self._long:
            return False
        return not self._timed_any or len(self._scored) >= self._together

    def _timed(self, scored: list[Outcome]) -> list[Outcome]:
        """Time files together; each alone where that fails, so that it costs one job."""
        start, self._timed_any = time.perf_counter(), True
        try:
            found = self._evaluator.timed([outcome.scored for outcome in scored])
        except DeviceLost:
            raise
        except Exception as error:
            if len(scored) > 1:
                return [one for outcome in scored for one in self._timed([outcome])]
            outcome = failed(scored[0].job, error)
            return [replace(outcome, seconds=scored[0].seconds)]
        seconds = (time.perf_counter() - start) / len(scored)
        return [
            replace(outcome, scored=None, measurement=measured, seconds=outcome.seconds + seconds)
            for outcome, measured in zip(scored, found, strict=True)
        ]

    def close(self, *, cancel: bool = False) -> None:
        """End the workers."""
        self._queue.clear()
        self._workers.close(cancel=cancel)

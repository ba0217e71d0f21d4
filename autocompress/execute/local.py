"""Evaluate in this process, one job at a time."""

from __future__ import annotations

import time
import traceback
from collections import deque

from autocompress.controller.protocols import Evaluator, Job, Outcome
from autocompress.errors import AutocompressError


class InProcessExecutor:
    """Runs a job when it is waited for.

    Args:
        evaluator: used directly.
    """

    slots = 1

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Run the next job; the timeout cannot interrupt it."""
        if not self._queue:
            return None
        return run_job(self.evaluator, self._queue.popleft())

    def close(self, *, cancel: bool = False) -> None:
        """Drop what is queued."""
        self._queue.clear()


def run_job(evaluator: Evaluator, job: Job) -> Outcome:
    """Evaluate one job; an exception becomes the outcome's error, never a crash of the study."""
    start = time.perf_counter()
    try:
        found = evaluator.evaluate(job.policy, job.phase, job.seed)
    except AutocompressError as error:
        return Outcome(job, None, f"{type(error).__name__}: {error}", time.perf_counter() - start)
    except Exception:
        return Outcome(job, None, traceback.format_exc(limit=6), time.perf_counter() - start)
    return Outcome(job, found, "", time.perf_counter() - start)

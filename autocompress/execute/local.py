"""Evaluate in this process, one job at a time."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from autocompress.controller.protocols import Evaluator, Job, Outcome
from autocompress.errors import AutocompressError, DeviceLost
from autocompress.execute.limit import TookTooLong, time_limit
from autocompress.policy.files import disk_full


class InProcessExecutor:
    """Runs a job when it is waited for.

    Args:
        evaluator: used directly.
        stuck: called, in another thread, with the outcome of a job that neither ends nor can be
            interrupted.
    """

    slots = 1

    def __init__(
        self, evaluator: Evaluator, stuck: Callable[[Outcome], object] = lambda outcome: None
    ) -> None:
        self.evaluator, self._stuck = evaluator, stuck
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Run the next job; the timeout cannot interrupt it, the job's own limit can."""
        if not self._queue:
            return None
        job = self._queue.popleft()
        return evaluate(self.evaluator, job, lambda: self._stuck(too_long(job)))

    def close(self, *, cancel: bool = False) -> None:
        """Drop what is queued."""
        self._queue.clear()


def evaluate(evaluator: Evaluator, job: Job, stuck: Callable[[], object] = lambda: None) -> Outcome:
    """Carry a job out in this process, timing included; see ``run_job``."""
    return run_job(
        lambda: Outcome(job, evaluator.evaluate(job.policy, job.phase, job.seed)), job, stuck
    )


def run_job(work: Callable[[], Outcome], job: Job, stuck: Callable[[], object]) -> Outcome:
    """Do a job within its limit; whatever its code raises becomes the outcome's error.

    Ctrl-C is let through, by which the study's own process is told to stop, and a lost device,
    without which it cannot go on.
    """
    start = time.perf_counter()
    try:
        with time_limit(job.limit_s, stuck):
            found = work()
    except TookTooLong:
        found = too_long(job)
    except (KeyboardInterrupt, DeviceLost):
        raise
    except BaseException as error:  # sys.exit in a user's code ends no study
        found = failed(job, error)
    return replace(found, seconds=time.perf_counter() - start)


def failed(job: Job, error: BaseException) -> Outcome:
    """What came of a job whose code raised something."""
    full = error if isinstance(error, OSError) and disk_full(error) else None
    return Outcome(job, None, told(error), full=full)


def too_long(job: Job) -> Outcome:
    """What came of a job that took longer than its limit."""
    remedy = (
        "That was all that was left of the study's time: give a longer --timeout."
        if job.last
        else "If it needs that long, set `search.trial_timeout_s`."
    )
    error = f"it took longer than {job.limit_s or 0:.3g} s and was given up. {remedy}"
    return Outcome(job, None, error, job.limit_s or 0.0)


def told(error: BaseException) -> str:
    """An exception as a trial's reason: a sentence of ours, or the last frames."""
    if isinstance(error, AutocompressError):
        return f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(error, limit=6))

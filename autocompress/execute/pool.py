"""Score in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for

from pebble import ProcessExpired, ProcessPool

from autocompress.controller.protocols import DividedEvaluator, Job, Outcome
from autocompress.execute.local import told
from autocompress.execute.worker import begin, died, score


class ProcessPoolExecutor:
    """A pool of fresh processes; each builds its evaluator once.

    A worker that dies fails the job that it had, and another takes its place.

    Args:
        factory: picklable; builds the evaluator in the worker.
        workers: how many processes.
    """

    away = False

    def __init__(self, factory: Callable[[], DividedEvaluator], workers: int) -> None:
        self.slots = workers
        self._factory = pickle.dumps(factory)
        self._running: dict[Future[Outcome], Job] = {}
        # torch and ONNX Runtime hold threads that a fork would leave dead
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(
            workers, initializer=begin, initargs=[self._factory], context=context
        )
        assert self._pool.active  # workers start now, not with the first job

    def submit(self, job: Job) -> None:
        """Hand a job to the pool."""
        self._running[self._pool.schedule(score, args=[self._factory, job])] = job

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The next finished job."""
        done, _ = wait_for(self._running, timeout, FIRST_COMPLETED)
        if not done:
            return None
        future = next(iter(done))
        job = self._running.pop(future)
        try:
            return future.result()
        except ProcessExpired as error:
            return died(job, error.exitcode)
        except Exception as error:  # what a worker found could not be sent
            return Outcome(job, None, told(error))

    def close(self, *, cancel: bool = False) -> None:
        """End the processes; with ``cancel``, the running jobs too."""
        if cancel:
            self._pool.stop()  # type: ignore[no-untyped-call]  # pebble's
        else:
            self._pool.close()  # type: ignore[no-untyped-call]  # pebble's
        self._pool.join()
        self._running.clear()

"""Evaluate in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import ProcessPoolExecutor as Pool
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool

from autocompress.controller.protocols import Evaluator, Job, Outcome
from autocompress.execute.worker import evaluate


class ProcessPoolExecutor:
    """A pool of fresh processes; each builds its evaluator once.

    A worker that dies fails the jobs that were under way, and the pool is started anew.

    Args:
        factory: picklable; builds the evaluator in the worker.
        workers: how many processes.
    """

    def __init__(self, factory: Callable[[], Evaluator], workers: int) -> None:
        self.slots = workers
        self._factory = pickle.dumps(factory)
        self._running: dict[Future[Outcome], Job] = {}
        self._pool = self._start()

    def _start(self) -> Pool:
        # torch and ONNX Runtime hold threads that a fork would leave dead
        return Pool(self.slots, mp_context=multiprocessing.get_context("spawn"))

    def submit(self, job: Job) -> None:
        """Hand a job to the pool."""
        try:
            future = self._pool.submit(evaluate, self._factory, job)
        except (BrokenProcessPool, OSError):  # a pool that breaks meanwhile has closed its pipes
            self._pool = self._start()
            future = self._pool.submit(evaluate, self._factory, job)
        self._running[future] = job

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The next finished job."""
        done, _ = wait_for(self._running, timeout, FIRST_COMPLETED)
        if not done:
            return None
        future = next(iter(done))
        job = self._running.pop(future)
        try:
            return future.result()
        except BrokenProcessPool:
            return Outcome(job, None, "the worker process died (out of memory, or killed)")

    def close(self, *, cancel: bool = False) -> None:
        """End the processes; with ``cancel``, the running jobs too."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=not cancel, cancel_futures=True)
        if cancel:
            for process in processes:
                process.terminate()
        self._running.clear()

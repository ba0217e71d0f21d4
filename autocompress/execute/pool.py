"""Score in several processes of this machine."""

from __future__ import annotations

import ast
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from autocompress.controller.protocols import DividedEvaluator, Job, Outcome
from autocompress.errors import InputError
from autocompress.execute.local import failed
from autocompress.execute.processes import Workers
from autocompress.execute.worker import begin, died, score
from autocompress.machine.facts import cores, usable_cores

_SETUP_S = 900.0
"""What a worker takes at most to load models and data, and to end a job that is over its limit."""
_AGAIN = 2
"""How often a job that no worker had begun when the pool broke is handed over again."""
_SAFE = "PYTHONSAFEPATH"


def check_main() -> None:
    """See that a new process can import the script that runs here.

    Raises:
        InputError: importing it would start its search again, in every worker.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    named = getattr(getattr(main, "__spec__", None), "name", "")
    if path is None or named.endswith("__main__"):
        return  # a notebook, lines typed in, a package's command: nothing that workers import
    try:
        statements = ast.parse(Path(path).read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):  # an archive, or compiled
        return
    tests = [ast.unparse(s.test) for s in statements if isinstance(s, ast.If)]
    if not any("__name__" in test and "__main__" in test for test in tests):
        raise InputError(
            f"Workers import {path}, which would start its search in each of them. Put what it "
            'does into a function, and call that under `if __name__ == "__main__":`; or give '
            "`workers=1`."
        )


def import_early() -> None:
    """Start importing what workers need; in another process, so that this one goes on.

    On Linux workers are forked from a process that has imported but never computed (``imports``).
    Elsewhere each imports for itself. As other processes of ours it does not look for modules in
    the folder that it was started in; workers look where the study's own process does.
    """
    if sys.platform != "linux":
        return
    multiprocessing.set_forkserver_preload(["autocompress.execute.imports"])
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        with _hangups_ignored():  # which Python's tracker of resources inherits, and keeps
            resource_tracker.ensure_running()
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ[_SAFE]
        else:
            os.environ[_SAFE] = before


@contextmanager
def _hangups_ignored() -> Iterator[None]:
    """In the main thread, the only one that may say so, and where the answer can be put back."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGHUP) is None:
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


class ProcessPoolExecutor:
    """A pool of fresh processes; each builds its evaluator once, and keeps its share of cores busy.

    A worker that dies fails the job that it had, and another takes its place. Jobs that it had not
    begun are none of its own: they are handed over again.

    Args:
        factory: picklable; builds the evaluator in the worker.
        workers: how many processes.
    """

    away = False

    def __init__(self, factory: Callable[[], DividedEvaluator], workers: int) -> None:
        self.slots = workers
        self._factory = pickle.dumps(factory)
        self._running: dict[Future[Outcome], tuple[Job, float]] = {}
        self._broken: Counter[int] = Counter()
        self._pool = self._start()

    def _start(self) -> ProcessPool:
        import_early()
        share = max(1, usable_cores() // self.slots)
        given = [self._factory, dict(os.environ), cores(), share]
        pool = ProcessPool(self.slots, initializer=begin, initargs=given, context=Workers())
        assert pool.active  # workers start now, not with the first job
        return pool

    def submit(self, job: Job) -> None:
        """Hand a job to the pool; one that broke, as when an idle worker dies, is started anew."""
        if not self._pool.active:
            self._stop()
            self._pool = self._start()
        future = self._pool.schedule(score, args=[self._factory, job])
        self._running[future] = (job, time.monotonic())

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The next finished job."""
        done, _ = wait_for(self._running, timeout, FIRST_COMPLETED)
        if not done:
            return self._lost()
        future = next(iter(done))
        job, _ = self._running.pop(future)
        try:
            return future.result()
        except ProcessExpired as error:
            return died(job, error.exitcode)
        except BrokenProcessPool:  # other processes died, or were ended
            self._broken[job.number] += 1
            if self._broken[job.number] > _AGAIN:
                return died(job)
            self.submit(job)
            return None
        except Exception as error:  # what a worker found could not be sent
            return failed(job, error)

    def _lost(self) -> Outcome | None:
        """A job that got lost between the pool and a worker, which ends those that it has."""
        if not self._pool.active:
            self._stop()
            return None
        now = time.monotonic()
        for future, (job, since) in self._running.items():
            if job.limit_s is not None and now - since > job.limit_s + _SETUP_S:
                del self._running[future]
                self._stop()  # the next job finds a new pool
                return died(job)
        return None

    def close(self, *, cancel: bool = False) -> None:
        """End the processes; with ``cancel``, the running jobs too."""
        if cancel or not self._pool.active:
            self._stop()
        else:
            self._pool.close()  # type: ignore[no-untyped-call]  # pebble's
            self._pool.join()
        self._running.clear()

    def _stop(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]  # pebble's
        self._pool.join()
        for future in self._running:
            if not future.done():  # the pool tells nothing of what it had not finished
                future.set_exception(BrokenProcessPool())  # the next wait hands it over again

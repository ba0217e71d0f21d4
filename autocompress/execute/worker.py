"""What runs inside a worker process: one evaluator, built once, that scores without timing."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from multiprocessing import parent_process

from autocompress.controller.protocols import DividedEvaluator, Job, Outcome
from autocompress.execute.local import run_job, told, too_long

_EVALUATORS: dict[int, DividedEvaluator] = {}


def begin(pickled: bytes) -> None:
    """Make this process a worker: it ends with its parent, and builds its evaluator."""
    parent = parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, name="follow-parent", daemon=True).start()
    # the terminal's Ctrl-C is for the study, which decides what becomes of its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print_to_stderr()
    try:
        prepare(pickled)
    except BaseException:  # a user's factory may exit
        return  # the first job says why


def print_to_stderr() -> None:
    """Send what code in this process prints to standard error: the output is the study's."""
    sys.stdout.flush()
    os.dup2(2, 1)


def prepare(pickled: bytes) -> DividedEvaluator:
    """Build this process's evaluator from a pickled factory, unless that was done already."""
    key = hash(pickled)
    if key not in _EVALUATORS:
        _EVALUATORS.clear()
        _EVALUATORS[key] = pickle.loads(pickled)()
    return _EVALUATORS[key]


def score(pickled: bytes, job: Job) -> Outcome:
    """Do all of a job but the timing, with this process's evaluator."""
    try:
        evaluator = prepare(pickled)
    except BaseException as error:
        return Outcome(job, None, f"the worker could not be set up: {told(error)}")
    return run_job(
        lambda: Outcome(job, None, scored=evaluator.score(job.policy, job.phase, job.seed)),
        job,
        lambda: os._exit(_STUCK),
    )


_STUCK = 75


def died(job: Job, code: int | None = None) -> Outcome:
    """What came of a job whose worker ended; by itself where the job was stuck."""
    if code == _STUCK:
        return too_long(job)
    exited = "" if code is None else f" with exit code {code}"
    return Outcome(job, None, f"the worker process died{exited} (out of memory, or killed)")

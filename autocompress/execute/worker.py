"""What runs inside a worker process: one evaluator, built once, that scores without timing."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from multiprocessing import parent_process

from autocompress.controller.protocols import DividedEvaluator, Job, Outcome
from autocompress.execute.local import run_job, told, too_long
from autocompress.execute.processes import leave_ends_to_the_study
from autocompress.machine.facts import take_share
from autocompress.machine.lock import pause_anywhere

_EVALUATORS: dict[int, DividedEvaluator] = {}


def begin(pickled: bytes, environment: dict[str, str], cores: set[int], share: int) -> None:
    """Make this process a worker: it ends with its parent, and builds its evaluator.

    Args:
        pickled: the evaluator's factory.
        environment: of the study's process, which may have changed since this one's was copied.
        cores: that the study's process may run on by now; empty where nothing is known.
        share: how many of them it may keep busy; the others are for other workers.
    """
    os.environ.clear()
    os.environ.update(environment)
    if cores:
        os.sched_setaffinity(0, cores)
    take_share(share)
    pause_anywhere()
    threading.Thread(target=_follow, args=[os.getppid()], name="follow", daemon=True).start()
    leave_ends_to_the_study()
    print_to_stderr()
    try:
        prepare(pickled)
    except BaseException:  # a user's factory may exit
        return  # the first job says why


def _follow(starter: int) -> None:
    """End soon after the study's process, and after the one that this was forked from."""
    study = parent_process()
    assert study is not None  # this is a worker
    while study.is_alive() and os.getppid() == starter:
        study.join(1.0)
    os._exit(1)


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

"""What runs inside a worker process: one evaluator, built once."""

from __future__ import annotations

import traceback

from autocompress.controller.protocols import Evaluator, Job, Outcome
from autocompress.execute.local import run_job

_EVALUATORS: dict[int, Evaluator] = {}


def prepare(pickled: bytes) -> None:
    """Build this process's evaluator from a pickled factory, unless that was done already."""
    import pickle

    key = hash(pickled)
    if key not in _EVALUATORS:
        _EVALUATORS.clear()
        _EVALUATORS[key] = pickle.loads(pickled)()


def evaluate(pickled: bytes, job: Job) -> Outcome:
    """Evaluate a job with this process's evaluator."""
    try:
        prepare(pickled)
    except Exception:
        return Outcome(
            job, None, f"the worker could not be set up: {traceback.format_exc(limit=6)}"
        )
    return run_job(next(iter(_EVALUATORS.values())), job)

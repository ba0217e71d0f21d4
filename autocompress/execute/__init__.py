"""Where evaluations run: this process, a pool of processes, or Ray Tune."""

from __future__ import annotations

from collections.abc import Callable

from autocompress.controller.protocols import Evaluator, Executor
from autocompress.errors import InputError
from autocompress.execute.local import InProcessExecutor
from autocompress.execute.pool import ProcessPoolExecutor
from autocompress.execute.ray_tune import RayTuneExecutor

EvaluatorFactory = Callable[[], Evaluator]
"""Builds the evaluator in a worker process; picklable."""


def make_executor(
    kind: str,
    workers: int,
    evaluator: Evaluator,
    factory: EvaluatorFactory,
    *,
    ray_address: str | None = None,
) -> Executor:
    """The executor that a study asks for.

    Args:
        kind: ``local`` or ``ray``.
        workers: evaluations at once.
        evaluator: used directly where one local worker is enough.
        factory: used by workers in other processes, once each.
        ray_address: of a running cluster; ``None`` starts Ray here.
    """
    if kind == "ray":
        return RayTuneExecutor(factory, workers, address=ray_address)
    if kind != "local":
        raise InputError(f"`executor` must be local or ray, got {kind!r}.")
    if workers == 1:
        return InProcessExecutor(evaluator)
    return ProcessPoolExecutor(factory, workers)

"""Where evaluations run: this process, a pool of processes, or Ray Tune."""

from __future__ import annotations

from collections.abc import Callable

from autocompress.controller.protocols import DividedEvaluator, Executor, Outcome
from autocompress.errors import InputError
from autocompress.execute.local import InProcessExecutor
from autocompress.execute.pool import ProcessPoolExecutor
from autocompress.execute.ray_actors import RayExecutor
from autocompress.execute.ray_tune import RayTuneExecutor
from autocompress.execute.timing import TimingExecutor

EvaluatorFactory = Callable[[], DividedEvaluator]
"""Builds the evaluator in a worker process; picklable."""


def make_executor(
    kind: str,
    workers: int,
    evaluator: DividedEvaluator,
    factory: EvaluatorFactory,
    *,
    ray_address: str | None = None,
    cpus: float | None = None,
    gpus: float = 0.0,
    stuck: Callable[[Outcome], object] = lambda outcome: None,
) -> Executor:
    """The executor that a study asks for.

    Args:
        kind: ``local``, ``ray`` (its actors) or ``ray_tune`` (trials of Ray Tune).
        workers: evaluations at once.
        evaluator: used directly where one local worker is enough; else it times.
        factory: used by workers in other processes, once each.
        ray_address: of a running cluster; ``None`` starts Ray here.
        cpus, gpus: that Ray reserves for each worker; see ``RayExecutor``.
        stuck: see ``InProcessExecutor``.
    """
    if kind not in ("local", "ray", "ray_tune"):
        raise InputError(f"`executor` must be local, ray or ray_tune, got {kind!r}.")
    if kind == "ray":
        actors = RayExecutor(factory, workers, address=ray_address, cpus=cpus, gpus=gpus)
        return TimingExecutor(actors, evaluator)
    if kind == "ray_tune":
        tuned = RayTuneExecutor(factory, workers, address=ray_address, cpus=cpus, gpus=gpus)
        return TimingExecutor(tuned, evaluator)
    if workers == 1:
        return InProcessExecutor(evaluator, stuck)
    return TimingExecutor(ProcessPoolExecutor(factory, workers), evaluator)

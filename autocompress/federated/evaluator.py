"""The search's evaluator where data lie with clients: costs and times here, quality from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.build.builder import Builder
from autocompress.estimate.estimator import Estimator
from autocompress.estimate.other_device import device_model
from autocompress.federated.rounds import RoundFailed
from autocompress.federated.server import FederatedPipeline
from autocompress.machine.progress import Progress
from autocompress.measure.measurer import Measurer, Scored
from autocompress.policy.policy import Policy
from autocompress.results.metric import WORST_CLIENT
from autocompress.results.screened import Screened
from autocompress.run.evaluator import StudyEvaluator
from autocompress.targets.base import Target
from autocompress.task.metrics import Score, TaskMetric
from autocompress.task.task import Result, Task
from autocompress.techniques.compressed import Compressed
from autocompress.workloads.cache import latency_folder

_LISTED = 100
"""Clients whose quality is told one by one."""


@dataclass
class FederatedScreening:
    """Divergences of policies, asked of all clients, several policies in one round.

    Args:
        pipeline: asks them.
        images: training samples of all clients together, at most.
    """

    pipeline: FederatedPipeline
    images: int

    def __call__(self, policy: Policy, images: int) -> Screened:
        """Mean divergence from the uncompressed outputs, over the clients' samples."""
        return self.several([policy], images)[0]

    def several(self, policies: Sequence[Policy], images: int) -> list[Screened]:
        """The same of several policies.

        Raises:
            RoundFailed: too few clients answered.
        """
        pipeline = self.pipeline
        args = {
            **pipeline.common,
            "policies": [policy.as_dict() for policy in policies],
            "share": pipeline.server.share(images),
        }
        expected = {"divergence": (len(policies), 3)}
        found = pipeline.server.ask("screen", args, blobs=pipeline.blobs, expected=expected)
        return [_screened(*row) for row in found.sums["divergence"].tolist()]

    @property
    def depends_on(self) -> dict[str, Any]:
        """What a divergence depends on beside the policy."""
        settings = self.pipeline.settings.screening_depends_on
        return {**self.pipeline.identity, "settings": settings, "federated": True}


def _screened(count: float, total: float, squares: float) -> Screened:
    mean = total / count
    variance = max(0.0, squares / count - mean**2)
    return Screened(mean, math.sqrt(variance / count), int(count))


@dataclass
class FederatedMeasurer(Measurer):
    """Scores exported files with the clients, and times them here.

    Args:
        told: quality by split and client, of the file that was scored last.
    """

    told: dict[str, dict[int, float]] = field(default_factory=dict)

    def quality(self, path: Path, split: str) -> Result:
        """The metrics over all clients' samples, and the quality of the worst client."""
        pipeline = self.pipeline
        assert isinstance(pipeline, FederatedPipeline)
        metrics = [m for m in pipeline.task.figures if not m.name.startswith(WORST_CLIENT)]
        content = {"file": np.frombuffer(path.read_bytes(), np.uint8)}
        found = pipeline.server.ask(
            "evaluate",
            {"split": split},
            arrays=content,
            each=True,
            expected={m.name: (3,) for m in metrics},
        )
        quality = metrics[0]
        own = {client: _mean(sums[quality.name]) for client, sums in found.each.items()}
        self.told[split] = own
        worst = min(own.values()) if quality.goal == "maximize" else max(own.values())
        scores = {m.name: _score(found.sums[m.name]) for m in metrics}
        scores[WORST_CLIENT + quality.name] = Score(worst)
        return Result(scores, (), int(found.sums[quality.name][0]))

    def score(
        self, compressed: Compressed, split: str, path: Path | None = None, **context: Any
    ) -> Scored:
        """As on data at hand; every client's quality stands in the context."""
        found = super().score(compressed, split, path, **context)
        own = self.told[split]
        if len(own) <= _LISTED:
            found.context["clients"] = {str(client): value for client, value in own.items()}
        return found


def _mean(row: NDArray[Any]) -> float:
    return float(row[1] / row[0])


def _score(row: NDArray[Any]) -> Score:
    count, mean = float(row[0]), _mean(row)
    variance = max(0.0, float(row[2]) / count - mean**2)
    return Score(mean, math.sqrt(variance / count))


@dataclass
class FederatedEvaluator(StudyEvaluator):
    """Screens many policies in one round; else like any study's."""

    #: an epoch is the clients' work: how long it takes here says nothing, and looking costs rounds
    epoch_s = None  # type: ignore[assignment]  # a method in the base: there is none

    def screen_all(self, policies: Sequence[Policy], images: int) -> list[Screened | None]:
        """Divergences of several policies; ``None`` where the round fails with all of them."""
        screening = self.screening
        assert isinstance(screening, FederatedScreening)
        try:
            return list(screening.several(policies, images))
        except RoundFailed:
            return [None] * len(policies)  # each is asked alone, and fails alone


def federated_evaluator(
    pipeline: FederatedPipeline,
    target: Target,
    folder: Path,
    *,
    screen_images: int,
    asked: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> FederatedEvaluator:
    """The evaluator of a federated study; see ``run.evaluator.make_evaluator``."""
    inventory, settings = pipeline.inventory, pipeline.settings
    estimator = Estimator(inventory, settings, pipeline.student_cost, target.describe())
    table = target.config.table
    other = None
    if table is not None:
        other = device_model(table, inventory, settings, latency_folder())
    measurer = FederatedMeasurer(target, pipeline, folder, estimator.cost, other, asked)
    builder = Builder(pipeline, folder, progress)
    screening = FederatedScreening(pipeline, screen_images)
    return FederatedEvaluator(estimator, builder, measurer, screening)


def with_worst(task: Task) -> Task:
    """A task that also tells the quality of the client where it is worst."""
    first = task.quality
    worst = TaskMetric(WORST_CLIENT + first.name, first.unit, first.goal, _only_by_clients)
    return replace(task, metrics=(*task.measured, worst))


def _only_by_clients(outputs: Any, targets: Any) -> float:
    raise NotImplementedError("the quality of the worst client is told by clients alone")

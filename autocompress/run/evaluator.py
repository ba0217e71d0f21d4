"""The search's evaluator over a real model, real data and a real runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autocompress.build.builder import Builder
from autocompress.build.state import state_file, weights_kept
from autocompress.estimate.estimator import Estimator
from autocompress.estimate.other_device import device_model
from autocompress.machine.lock import after_timing
from autocompress.machine.progress import Progress
from autocompress.measure.measurer import Measurer, Scored
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.quality.screening import Screening
from autocompress.results.metric import Measurement
from autocompress.results.screened import Screened
from autocompress.results.trial import SEARCH, Phase, Trial
from autocompress.workloads.cache import latency_folder

if TYPE_CHECKING:
    from autocompress.build.pipeline import Pipeline
    from autocompress.targets.base import Target


class Screens(Protocol):
    """Compares outputs of policies with the uncompressed model's, without an export."""

    @property
    def depends_on(self) -> dict[str, Any]:
        """What a divergence depends on beside the policy."""

    def __call__(self, policy: Policy, images: int) -> Screened:
        """Mean divergence on the first ``images`` inputs."""


@dataclass
class StudyEvaluator:
    """Puts estimator, builder and measurer together; see ``make_evaluator``.

    Args:
        estimator: tells costs before anything is built.
        builder: builds compressed models.
        measurer: judges their exported files.
        screening: compares outputs without an export.
    """

    estimator: Estimator
    builder: Builder
    measurer: Measurer
    screening: Screens

    @property
    def baseline(self) -> Measurement:
        """The uncompressed model on val, in the target runtime."""
        return self.measurer.baseline

    def estimate(self, policy: Policy) -> Measurement:
        """Cost by formula and latency by the model; no module is built."""
        return self.estimator.estimate(policy)

    def estimate_changes(
        self, policy: Policy
    ) -> Callable[[Mapping[str, LayerPolicy]], Measurement]:
        """The same for policies that differ from one in a few layers; see ``NearEvaluator``."""
        return self.estimator.changes(policy)

    def observe(self, trial: Trial) -> None:
        """Let estimates, and later timings of the same policy, learn from a finished trial."""
        self.estimator.observe(trial)
        self.measurer.remember(trial)

    def screen(self, policy: Policy, images: int) -> Screened:
        """Divergence from the uncompressed outputs on training inputs, simulated, zero-shot."""
        return self.screening(policy, images)

    def evaluate(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Measurement:
        """Build (or load what was trained before), export, and measure the file."""
        return self.timed([self.score(policy, phase, seed)])[0]

    def score(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Scored:
        """All of an evaluation but the time of the file, which is kept until it is timed."""
        after_timing()
        start = time.perf_counter()
        compressed = self.builder(policy, phase, seed)
        split, built = "test" if phase.kind == "verify" else "val", time.perf_counter() - start
        path = self.model_path(policy, phase)
        return self.measurer.score(compressed, split, path, build_s=built)

    def epoch_s(self, policy: Policy, seconds: float) -> float:
        """Seconds of one epoch of training a policy's model here, from a few steps."""
        return self.builder.pipeline.epoch_s(policy, seconds)

    def files(self, policy: Policy, phase: Phase, seed: int) -> list[Path]:
        """The exported file, and the trained weights that verification and recipes read."""
        found = [self.model_path(policy, phase)]
        if weights_kept(self.builder.pipeline.settings, policy, phase):
            found.append(state_file(self.builder.folder, policy, phase.epochs, seed))
        return found

    def timed(self, scored: Sequence[Scored]) -> list[Measurement]:
        """Time files, and delete those that the search alone asked for."""
        found = self.measurer.timed(scored)
        for one in scored:
            if one.path == self.model_path(one.policy, SEARCH):
                one.path.unlink(missing_ok=True)
        return found

    def model_path(self, policy: Policy, phase: Phase) -> Path:
        """Where the exported file of an evaluation is written."""
        return self.measurer.file(f"{policy.digest[:16]}-{phase.kind}-e{phase.epochs:g}")

    def export_variant(self, policy: Policy) -> Path:
        """Export a policy's model for timing only."""
        path = self.measurer.file(f"variant-{policy.digest[:16]}")
        self.measurer.export(self.builder.for_timing(policy), path)
        return path

    def student_ratio(self, name: str) -> float:
        """Latency of a student, as a share of the uncompressed model's: exported and timed."""
        path = self.export_variant(Policy(student=name))
        ratio = self.measurer.timing(path, max_seconds=8.0).ratio
        path.unlink()
        return ratio


def make_evaluator(
    pipeline: Pipeline,
    target: Target,
    folder: Path,
    *,
    screen_images: int = 512,
    asked: frozenset[str] = frozenset(),
    others: Sequence[Target] = (),
    progress: Progress | None = None,
) -> StudyEvaluator:
    """The evaluator of a study, without a latency model yet.

    Args:
        pipeline: builds compressed models.
        target: opens and times the files.
        folder: of exported files and trained weights.
        screen_images: how many training inputs screening can use at most.
        asked, others: see ``Measurer``.
        progress: told how far a fine-tune is.
    """
    inventory, settings = pipeline.inventory, pipeline.settings
    estimator = Estimator(inventory, settings, pipeline.student_cost, target.describe())
    table = target.config.table
    other = None
    if table is not None:
        other = device_model(table, inventory, settings, latency_folder())
    measurer = Measurer(target, pipeline, folder, estimator.cost, other, asked, others)
    builder = Builder(pipeline, folder, progress)
    return StudyEvaluator(estimator, builder, measurer, Screening(pipeline, screen_images))

"""Measures compressed models: each one exported, scored, and timed beside the uncompressed one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autocompress.errors import InputError
from autocompress.machine.lock import after_timing
from autocompress.measure.extras import MEMORY, ExtraCosts
from autocompress.measure.gate import Inspection, inspect_file
from autocompress.measure.latency import SINGLE_CALLS, Timing, Undisturbed, paired_timings
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import Plan
from autocompress.policy.costs import P99
from autocompress.policy.policy import Policy
from autocompress.quality.saturation import overflow_problems
from autocompress.results.difference import HITS, SCORES, pack_hits, pack_scores
from autocompress.results.metric import Measurement

if TYPE_CHECKING:
    from autocompress.build.pipeline import Pipeline
    from autocompress.model.cost import Cost
    from autocompress.results.trial import Trial
    from autocompress.targets.base import Target
    from autocompress.task.task import Result
    from autocompress.techniques.compressed import Compressed


class OtherDevice(Protocol):
    """Predicts latencies of a device that is not here, from what was timed there."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Runtime and machine that the times were taken on."""

    def predict(self, policy: Policy) -> tuple[float, float]:
        """Latency in ms and one standard deviation."""


@dataclass(frozen=True)
class Scored:
    """A compressed model whose file waits to be timed; picklable.

    Args:
        policy: of the model.
        path: of the exported file.
        result: its quality.
        inspection: what its profile shows.
        memory: peak memory, where it was measured.
        context: of the measurement, as far as it is known.
    """

    policy: Policy
    path: Path
    result: Result
    inspection: Inspection
    memory: dict[str, float]
    context: dict[str, Any]


@dataclass
class Measurer:
    """Judges exported files in the target runtime.

    Args:
        target: opens and times the files.
        pipeline: of the uncompressed model and the data.
        folder: exported files are kept here.
        cost: of a policy by formula; stands beside what is measured.
        other_device: predicts the latency of the device whose table the target names; ``None``
            where latencies are those of this machine.
        asked: names of costs that are measured of every trial because the study limits or
            compares them; see ``extras``.
        others: further targets, on which every file is timed, too.
        quiet_speed: how quickly the uncompressed model has been seen to run.
    """

    target: Target
    pipeline: Pipeline
    folder: Path
    cost: Callable[[Policy], Cost]
    other_device: OtherDevice | None = None
    asked: frozenset[str] = frozenset()
    others: Sequence[Target] = ()
    quiet_speed: QuietSpeed = field(default_factory=QuietSpeed)
    _undisturbed: Undisturbed = field(default_factory=Undisturbed)

    @cached_property
    def extras(self) -> ExtraCosts:
        """Measures what only some studies ask for."""
        return ExtraCosts(self.target, self.asked, self.others)

    @cached_property
    def example(self) -> Any:
        """Inputs of two samples, for tracing, export and its check."""
        return self.pipeline.data.train.inputs(2)

    @cached_property
    def answer(self) -> Any:
        """What the uncompressed model answers; files' outputs are built like it."""
        import torch

        from autocompress.task.calling import call

        with torch.inference_mode():
            return call(self.pipeline.model, self.example)

    @cached_property
    def baseline_file(self) -> Path:
        """The uncompressed model, exported once for all comparisons."""
        path = self.file("baseline")
        if not path.exists():
            self.export(self.pipeline.stitch(Policy()), path)
        return path

    @cached_property
    def baseline(self) -> Measurement:
        """The uncompressed model on val, in the target runtime."""
        path, policy = self.baseline_file, Policy()
        timing = self.timing(path, max_seconds=8.0)
        latency = self._latency(policy, timing.baseline_ms, timing.baseline_iqr_ms)
        return self._measurement(
            policy,
            path,
            self.quality(path, "val"),
            latency,
            {**self.extras.memory(path), **self.beside_latency(path, timing, latency[0])},
            {"timing": timing.as_dict(), "split": "val", "identity": self.pipeline.identity},
        )

    @cached_property
    def baseline_test(self) -> Measurement:
        """The uncompressed model with its quality on the test split; for the last phase only.

        A quality that cannot be told there is missing, with the reason among the problems.
        """
        result, val = self.quality(self.baseline_file, "test"), self.baseline
        names = {m.name for m in val.metrics}
        values = {n: v for n, v in val.values.items() if n not in names}
        spread = {n: v for n, v in val.spread.items() if n not in names}
        context = {k: v for k, v in val.context.items() if k not in (HITS, SCORES)}
        return Measurement(
            {**values, **_values(result)},
            {**spread, **_errors(result)},
            {**context, **_samples(result), "split": "test", "problems": list(result.problems)},
            val.metrics,
        )

    def set_baseline(self, baseline: Measurement) -> None:
        """Take a baseline that was measured before, so that a resumed run compares with it."""
        self.__dict__["baseline"] = baseline

    def file(self, stem: str) -> Path:
        """Where an exported file of this name lies."""
        return self.folder / f"{stem}{self.target.suffix}"

    def export(self, compressed: Compressed, path: Path) -> None:
        """Write a compressed model for the target; parent folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.target.export(compressed, path, self.example)

    def timing(self, path: Path, *, max_seconds: float) -> Timing:
        """A file timed beside the uncompressed one; see ``timings``."""
        return self.timings([path], max_seconds=max_seconds)[0]

    def timings(self, paths: Sequence[Path], *, max_seconds: float) -> list[Timing]:
        """Files timed beside the uncompressed one; every timing of a study goes through here.

        Args:
            paths: the files.
            max_seconds: for one file; several share the uncompressed model's turns.
        """
        # nobody waits for a quiet machine where its times are not asked for
        here = self.other_device is None
        seconds = max_seconds * (1 + len(paths)) / 2
        singles = SINGLE_CALLS if P99 in self.asked else 0
        plan = Plan(max_seconds=seconds, apart_s=1.0 if here else 0.0, single_calls=singles)
        quiet = self.quiet_speed if here else None
        return paired_timings(self.target, paths, self.baseline_file, plan=plan, quiet=quiet)

    def remember(self, trial: Trial) -> None:
        """Keep how long a policy's file takes, where nothing disturbed its timing."""
        found = trial.measurement
        if found is not None and found.context.get("target") == self.target.describe():
            self._undisturbed.note(trial.policy, found.timing)

    def score(
        self, compressed: Compressed, split: str, path: Path | None = None, **context: Any
    ) -> Scored:
        """Export a compressed model, score the file and look through it; all but its time.

        Other work on the machine may slow this, but changes nothing of it.

        Args:
            compressed: ready to export.
            split: ``val`` or ``test``.
            path: of the exported file; ``None`` puts it into the folder.
            **context: goes into the measurement's context.
        """
        path = path or self.file("measured")
        after_timing()
        start = time.perf_counter()
        self.export(compressed, path)
        exported = time.perf_counter()
        result = self.quality(path, split)
        inspection = inspect_file(self.target, path, compressed)
        problems = [
            *overflow_problems(compressed, compressed.quantized and self._overflows),
            *result.problems,
        ]
        context |= {
            "split": split,
            "export_s": exported - start,
            "score_s": time.perf_counter() - exported,
            "problems": problems,
            "notes": compressed.notes,
        }
        wanted = MEMORY in self.asked or split == "test"
        memory = self.extras.memory(path) if wanted else {}
        return Scored(compressed.policy, path, result, inspection, memory, context)

    def timed(self, scored: Sequence[Scored]) -> list[Measurement]:
        """Time files beside the uncompressed one, all in the same rounds.

        Args:
            scored: at least one.

        Returns:
            The whole measurement of each, in order.
        """
        start = time.perf_counter()
        timings = self.timings([s.path for s in scored], max_seconds=3.0)
        seconds = (time.perf_counter() - start) / len(scored)
        return [self._judged(s, t, seconds) for s, t in zip(scored, timings, strict=True)]

    def measure(
        self, compressed: Compressed, split: str, path: Path | None = None, **context: Any
    ) -> Measurement:
        """Score a compressed model and time it; see ``score``."""
        return self.timed([self.score(compressed, split, path, **context)])[0]

    def _judged(self, scored: Scored, timing: Timing, seconds: float) -> Measurement:
        """A file with its time."""
        here, context = self.other_device is None, scored.context
        timing, notes = self._undisturbed.instead(timing, scored.policy)
        judged = scored.inspection.judged(timing if here else None)
        # The ratio of an interleaved run carries over to the study's one baseline figure; the
        # raw milliseconds of a drifting machine would not. Both stand in the context.
        latency = self._latency(
            scored.policy, timing.ratio * self.baseline["latency_ms"], timing.iqr_ms
        )
        context = context | {
            "time_s": seconds,
            "waited_s": timing.facts.get("waited_s", 0.0),
            "timing": timing.as_dict(),
            "problems": [*judged.problems, *context["problems"]],
            "notes": [*context["notes"], *notes, *judged.notes],
            "conversions": judged.conversions.as_dict(),
        }
        extras = self.beside_latency(scored.path, timing, latency[0], self.baseline.values)
        return self._measurement(
            scored.policy, scored.path, scored.result, latency, scored.memory | extras, context
        )

    def beside_latency(
        self, path: Path, timing: Timing, ms: float, base: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """What is measured of a file beside its latency; nothing where a table tells that.

        Args:
            path: of the file.
            timing: of it.
            ms: its latency in the study's figures.
            base: values of the uncompressed model; ``None`` for that itself.
        """
        if self.other_device is not None:
            return {}
        return self.extras.after_timing(path, self.baseline_file, timing, ms, base)

    @cached_property
    def _overflows(self) -> bool:
        return self.target.products_overflow()

    def _latency(self, policy: Policy, ms: float, spread: float) -> tuple[float, float]:
        """A latency measured here with its spread, or the other device's predicted one."""
        return (ms, spread) if self.other_device is None else self.other_device.predict(policy)

    def quality(self, path: Path, split: str) -> Result:
        """What the task says of a file on one split, in the target runtime.

        Raises:
            InputError: the quality cannot be told on val, without which nothing can be compared.
        """
        from autocompress.quality.score import file_quality

        task = self.pipeline.task
        own = getattr(self.pipeline.data, split)
        found = file_quality(self.target, path, own, task, like=self.answer)
        if split == "val" and task.quality.name not in found.scores:
            raise InputError(
                f"The quality cannot be told on val, so that nothing can be compared: "
                f"{' '.join(found.problems)}"
            )
        return found

    def _measurement(
        self,
        policy: Policy,
        path: Path,
        result: Result,
        latency: tuple[float, float],
        extras: dict[str, float],
        context: dict[str, Any],
    ) -> Measurement:
        table = {} if self.other_device is None else {"table": dict(self.other_device.facts)}
        cost = self.cost(policy)
        values = {
            **_values(result),
            "latency_ms": latency[0],
            "macs": float(cost.macs),
            "params": float(cost.params),
            "bops": float(cost.bops),
            "size_bytes": float(path.stat().st_size),
            **extras,
        }
        return Measurement(
            values,
            {**_errors(result), "latency_ms": latency[1]},
            {
                "target": {**self.target.describe(), **table},
                **({"also_on": [t.describe() for t in self.others]} if self.others else {}),
                **_samples(result),
                **context,
            },
            self.pipeline.task.figures,
        )


def _values(result: Result) -> dict[str, float]:
    return {name: score.value for name, score in result.scores.items()}


def _errors(result: Result) -> dict[str, float]:
    return {n: score.stderr for n, score in result.scores.items() if score.stderr is not None}


def _samples(result: Result) -> dict[str, Any]:
    """How many samples, and what came of each where the quality is told per sample."""
    quality = next(iter(result.scores.values()), None)
    found: dict[str, Any] = {"images": result.count}
    if quality is None or quality.each is None:
        return found
    if quality.each.dtype == bool:
        return {**found, HITS: pack_hits(quality.each)}
    return {**found, SCORES: pack_scores(quality.each)}

"""Measures policies for the search: builds each one, exports it, and judges the exported file."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.build.state import state_file
from autocompress.measure.quiet import QuietSpeed
from autocompress.policy.policy import Policy
from autocompress.results.metric import Measurement
from autocompress.results.screened import Screened
from autocompress.results.trial import SEARCH, Phase

if TYPE_CHECKING:
    from autocompress.build.pipeline import Pipeline, Progress
    from autocompress.measure.accuracy import Accuracy
    from autocompress.measure.latency import Timing
    from autocompress.measure.latency_model import LatencyModel
    from autocompress.measure.screening import Screening
    from autocompress.policy.space import Space
    from autocompress.targets.base import Target
    from autocompress.task.data import Split
    from autocompress.techniques.compressed import Compressed


@dataclass
class StudyEvaluator:
    """The search's evaluator over a real model, real data and a real runtime.

    Args:
        pipeline: builds the compressed models.
        target: opens and times the exported files.
        folder: exported files and trained weights are kept here.
        latency_model: predicts latency before anything is built; ``None`` before profiling.
        screen_images: how many training inputs ``screen`` can use at most.
        keep_files: keep the exported file of every trial, not only of verified ones.
        measure_memory: measure the peak memory of every trial, not only of the uncompressed model
            and of verified ones; it takes a process of its own, about half a second.
        progress: told how far a fine-tune is.
        quiet_speed: how quickly the uncompressed model has been seen to run.
    """

    pipeline: Pipeline
    target: Target
    folder: Path
    latency_model: LatencyModel | None = None
    screen_images: int = 512
    keep_files: bool = False
    measure_memory: bool = False
    progress: Progress | None = None
    quiet_speed: QuietSpeed = field(default_factory=QuietSpeed)
    _estimates: dict[Policy, Measurement] = field(default_factory=dict)

    @cached_property
    def baseline_file(self) -> Path:
        """The uncompressed model, exported once for all comparisons."""
        path = self.folder / f"baseline{self.target.suffix}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._export(self.pipeline.stitch(Policy()), path)
        return path

    @cached_property
    def baseline(self) -> Measurement:
        """The uncompressed model on val, in the target runtime."""
        timing = self._timing(self.baseline_file)
        accuracy = self._accuracy(self.baseline_file, self.pipeline.data.val)
        return self._measurement(
            Policy(),
            self.baseline_file,
            accuracy,
            *self._latency(Policy(), timing.baseline_ms, timing.baseline_iqr_ms),
            self._memory(self.baseline_file),
            {"timing": timing.as_dict(), "split": "val", "identity": self.identity},
        )

    @cached_property
    def baseline_test(self) -> Measurement:
        """The uncompressed model with its accuracy on the test split; for the last phase only."""
        accuracy = self._accuracy(self.baseline_file, self.pipeline.data.test)
        val = self.baseline
        return Measurement(
            {**val.values, "accuracy": accuracy.value},
            {**val.spread, "accuracy": accuracy.stderr},
            {**val.context, "split": "test", "images": accuracy.images},
        )

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of the model and the data, for recipes."""
        inventory = self.pipeline.inventory
        return {
            "architecture": inventory.architecture,
            "weights": inventory.weights,
            "data": self.pipeline.data.fingerprint,
        }

    @property
    def screened_with(self) -> dict[str, Any]:
        """Model, data and settings that ``screen`` depends on beside the policy."""
        settings = self.pipeline.settings.model_dump(mode="json")
        return {**self.identity, "settings": settings, "inputs": self.screen_images}

    def predict_with(self, latency_model: LatencyModel) -> None:
        """Take a latency model; estimates made before, without one, are forgotten."""
        self.latency_model = latency_model
        self._estimates.clear()

    def learn(self, policy: Policy, ratio: float) -> None:
        """Let the latency model know a measured latency, as a share of the uncompressed model's."""
        if self.latency_model is not None and policy.student is None and self._elsewhere is None:
            self.latency_model.observe(policy, ratio)
            self._estimates.clear()

    def student_ratio(self, name: str) -> float:
        """Latency of a student, as a share of the uncompressed model's: exported and timed."""
        path = self.folder / f"student-{name}{self.target.suffix}"
        self._export(self.pipeline.stitch(Policy(student=name)), path)
        ratio = self._timing(path).ratio
        path.unlink()
        return ratio

    def set_baseline(self, baseline: Measurement) -> None:
        """Take a baseline that was measured before, so that a resumed run compares with it."""
        self.__dict__["baseline"] = baseline

    def estimate(self, policy: Policy) -> Measurement:
        """Cost by formula and latency by the model; no module is built."""
        policy = policy.untrained
        known = self._estimates.get(policy)
        if known is None:
            cost = self.pipeline.cost(policy)
            values = {
                "macs": float(cost.macs),
                "params": float(cost.params),
                "size_bytes": float(cost.size_bytes),
                "bops": float(cost.bops),
            }
            spread = {}
            if self.latency_model is not None:
                values["latency_ms"], spread["latency_ms"] = self.latency_model.predict(policy)
            known = self._estimates[policy] = Measurement(values, spread)
        return known

    def screen(self, policy: Policy, images: int) -> Screened:
        """KL from the uncompressed model's outputs on training inputs, simulated, zero-shot."""
        return self._screening(policy, images)

    def evaluate(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Measurement:
        """Build (or load what was trained before), export, and measure the file."""
        from autocompress.measure.lock import machine_lock

        start = time.perf_counter()
        with machine_lock(exclusive=False):
            compressed = self.compressed(policy, phase, seed)
        path = self.model_path(policy, phase)
        split = "test" if phase.kind == "verify" else "val"
        found = self.measure(compressed, split, path, build_s=time.perf_counter() - start)
        if phase.kind == "search" and not self.keep_files:
            path.unlink(missing_ok=True)
        return found

    def measure(
        self, compressed: Compressed, split: str, path: Path | None = None, **context: Any
    ) -> Measurement:
        """Export a compressed model, score the file and time it beside the uncompressed one.

        Args:
            compressed: ready to export.
            split: ``val`` or ``test``.
            path: of the exported file; ``None`` puts it into the evaluator's folder.
            **context: goes into the measurement's context.
        """
        from autocompress.measure.gate import check_file
        from autocompress.measure.lock import machine_lock

        path = path or self.folder / f"measured{self.target.suffix}"
        start = time.perf_counter()
        with machine_lock(exclusive=False):
            self._export(compressed, path)
        exported = time.perf_counter()
        timing = self._timing(path, max_seconds=3.0)
        timed = time.perf_counter()
        with machine_lock(exclusive=False):
            accuracy = self._accuracy(path, getattr(self.pipeline.data, split))
        scored = time.perf_counter()
        if not timing.disturbed:
            self.learn(compressed.policy, timing.ratio)
        judged = timing if self._elsewhere is None else None
        problems = check_file(self.target, path, compressed, judged)
        context |= {
            "split": split,
            "export_s": exported - start,
            "score_s": scored - timed,
            "time_s": time.perf_counter() - scored + timed - exported,
            "waited_s": timing.facts.get("waited_s", 0.0),
            "timing": timing.as_dict(),
            "problems": list(problems),
            "notes": [*compressed.notes, *timing.notes],
        }
        # The ratio of an interleaved run carries over to the study's one baseline figure; the
        # raw milliseconds of a drifting machine would not. Both stand in the context.
        latency = self._latency(
            compressed.policy, timing.ratio * self.baseline["latency_ms"], timing.iqr_ms
        )
        memory = self._memory(path) if self.measure_memory or split == "test" else {}
        return self._measurement(compressed.policy, path, accuracy, *latency, memory, context)

    def compressed(self, policy: Policy, phase: Phase, seed: int) -> Compressed:
        """The compressed model; trained ones are kept on disk and loaded again.

        The ``verify`` phase asks for the same epochs and seed as the recovery before it, and so
        judges the very weights that the recovery trained.
        """
        from autocompress.build.state import save_state

        if phase.epochs <= 0:
            return self.pipeline.build(policy, phase, seed, progress=self.progress)
        state = state_file(self.folder, policy, phase.epochs, seed)
        if state.exists():
            return self.pipeline.restore(policy, state)
        compressed = self.pipeline.build(
            policy, phase, seed, progress=self.progress, checkpoint=state.with_suffix(".partial")
        )
        save_state(state, compressed)
        return compressed

    def model_path(self, policy: Policy, phase: Phase) -> Path:
        """Where the exported file of an evaluation is written."""
        return (
            self.folder / f"{policy.digest[:16]}-{phase.kind}-e{phase.epochs:g}{self.target.suffix}"
        )

    def pack_kernels(self, space: Space, path: Path) -> Path:
        """Pack kernels, a few whole models and a runner that times them on another device.

        Args:
            space: whose widths, bits and ranks will be asked for.
            path: of the zip file.
        """
        from autocompress.measure.pack import pack_kernels

        return pack_kernels(
            path,
            self.pipeline.inventory,
            space,
            self.target.config,
            self.export_variant,
            self.baseline_file,
            settings=self.pipeline.settings,
            progress=self.progress or (lambda text, done: None),
        )

    @cached_property
    def _elsewhere(self) -> LatencyModel | None:
        """The latency model of the device whose table the study names."""
        from autocompress.measure.latency_model import LatencyModel

        table = self.target.config.table
        if table is None:
            return None
        return LatencyModel.from_table(table, self.pipeline.inventory, self.pipeline.settings)

    def _latency(self, policy: Policy, ms: float, spread: float) -> tuple[float, float]:
        """A latency measured here with its spread, or the other device's predicted one."""
        return (ms, spread) if self._elsewhere is None else self._elsewhere.predict(policy)

    def _timing(self, path: Path, max_seconds: float = 8.0) -> Timing:
        """A file paired with the uncompressed one."""
        from autocompress.measure.latency import paired_timing
        from autocompress.measure.sampling import Plan

        # nobody waits for a quiet machine where its times are not asked for
        here = self._elsewhere is None
        plan = Plan(max_seconds=max_seconds, apart_s=1.0 if here else 0.0)
        quiet = self.quiet_speed if here else None
        return paired_timing(self.target, path, self.baseline_file, plan=plan, quiet=quiet)

    def export_variant(self, policy: Policy) -> Path:
        """Export a policy's model for timing only: sliced weights, ranges from a few inputs."""
        from autocompress.build.calibrate import calibrate

        compressed = self.pipeline.bank.stitch(policy, solve=False)
        if compressed.quantized:
            compressed = calibrate(compressed, self.pipeline.data.train.inputs(16))
        path = self.folder / f"variant-{policy.digest[:16]}{self.target.suffix}"
        self._export(compressed, path)
        return path

    def _export(self, compressed: Compressed, path: Path) -> None:
        from autocompress.exporters.write import export

        path.parent.mkdir(parents=True, exist_ok=True)
        export(compressed, path, self.example)

    def _accuracy(self, path: Path, split: Split) -> Accuracy:
        from autocompress.measure.accuracy import file_accuracy

        return file_accuracy(self.target, path, split, self.pipeline.data.metric)

    def _memory(self, path: Path) -> dict[str, float]:
        """The peak memory of a file, where the system tells it."""
        from autocompress.measure.memory import peak_memory_bytes

        found = peak_memory_bytes(self.target.config, path)
        return {} if found is None else {"peak_memory_bytes": float(found)}

    def _measurement(
        self,
        policy: Policy,
        path: Path,
        accuracy: Accuracy,
        latency_ms: float,
        iqr_ms: float,
        memory: dict[str, float],
        context: dict[str, Any],
    ) -> Measurement:
        from autocompress.results.difference import HITS, pack_hits

        if accuracy.correct is not None:
            context = {**context, HITS: pack_hits(accuracy.correct)}
        cost = self.estimate(policy)
        values = {
            "accuracy": accuracy.value,
            "latency_ms": latency_ms,
            "macs": cost["macs"],
            "params": cost["params"],
            "bops": cost["bops"],
            "size_bytes": float(path.stat().st_size),
            **memory,
        }
        return Measurement(
            values,
            {"accuracy": accuracy.stderr, "latency_ms": iqr_ms},
            {"target": self._where, "images": accuracy.images, **context},
        )

    @cached_property
    def _where(self) -> dict[str, Any]:
        """What the latency belongs to: the target here, or the table's device."""
        here = self.target.describe()
        if self._elsewhere is None:
            return here
        return {**here, "table": self._elsewhere.table.facts}

    @cached_property
    def example(self) -> Any:
        """One batched input, for tracing and export."""
        return self.pipeline.data.train.inputs(1)

    @cached_property
    def _screening(self) -> Screening:
        from autocompress.measure.screening import Screening

        return Screening(self.pipeline, self.screen_images)

"""Measures compressed models: each one exported, scored, and timed beside the uncompressed one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.measure.lock import machine_lock
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.saturation import overflow_problems, products_overflow
from autocompress.policy.policy import Policy
from autocompress.results.difference import HITS, pack_hits
from autocompress.results.metric import Measurement

if TYPE_CHECKING:
    from autocompress.build.pipeline import Pipeline
    from autocompress.measure.accuracy import Accuracy
    from autocompress.measure.latency import Timing
    from autocompress.measure.latency_model import LatencyModel
    from autocompress.model.cost import Cost
    from autocompress.targets.base import Target
    from autocompress.techniques.compressed import Compressed


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
        measure_memory: measure the peak memory of every trial, not only of the uncompressed model
            and of verified ones; it takes a process of its own, about half a second.
        quiet_speed: how quickly the uncompressed model has been seen to run.
    """

    target: Target
    pipeline: Pipeline
    folder: Path
    cost: Callable[[Policy], Cost]
    other_device: LatencyModel | None = None
    measure_memory: bool = False
    quiet_speed: QuietSpeed = field(default_factory=QuietSpeed)

    @cached_property
    def example(self) -> Any:
        """One batched input, for tracing and export."""
        return self.pipeline.data.train.inputs(1)

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
        return self._measurement(
            policy,
            path,
            self.score(path, "val"),
            self._latency(policy, timing.baseline_ms, timing.baseline_iqr_ms),
            self.memory(path),
            {"timing": timing.as_dict(), "split": "val", "identity": self.pipeline.identity},
        )

    @cached_property
    def baseline_test(self) -> Measurement:
        """The uncompressed model with its accuracy on the test split; for the last phase only."""
        accuracy = self.score(self.baseline_file, "test")
        val = self.baseline
        return Measurement(
            {**val.values, "accuracy": accuracy.value},
            {**val.spread, "accuracy": accuracy.stderr},
            {**val.context, "split": "test", "images": accuracy.images},
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
        """A file timed beside the uncompressed one; every timing of a study goes through here.

        Args:
            path: the file.
            max_seconds: of one timing.
        """
        from autocompress.measure.latency import paired_timing
        from autocompress.measure.sampling import Plan

        # nobody waits for a quiet machine where its times are not asked for
        here = self.other_device is None
        plan = Plan(max_seconds=max_seconds, apart_s=1.0 if here else 0.0)
        quiet = self.quiet_speed if here else None
        return paired_timing(self.target, path, self.baseline_file, plan=plan, quiet=quiet)

    def measure(
        self, compressed: Compressed, split: str, path: Path | None = None, **context: Any
    ) -> Measurement:
        """Export a compressed model, time the file beside the uncompressed one, and score it.

        Args:
            compressed: ready to export.
            split: ``val`` or ``test``.
            path: of the exported file; ``None`` puts it into the folder.
            **context: goes into the measurement's context.
        """
        from autocompress.measure.gate import check_file

        policy, path = compressed.policy, path or self.file("measured")
        start = time.perf_counter()
        with machine_lock(exclusive=False):
            self.export(compressed, path)
        exported = time.perf_counter()
        timing = self.timing(path, max_seconds=3.0)
        timed = time.perf_counter()
        with machine_lock(exclusive=False):
            accuracy = self.score(path, split)
        context |= {
            "split": split,
            "export_s": exported - start,
            "time_s": timed - exported,
            "score_s": time.perf_counter() - timed,
            "waited_s": timing.facts.get("waited_s", 0.0),
            "timing": timing.as_dict(),
            "problems": [
                *check_file(
                    self.target, path, compressed, timing if self.other_device is None else None
                ),
                *overflow_problems(compressed, compressed.quantized and self._overflows),
            ],
            "notes": [*compressed.notes, *timing.notes],
        }
        # The ratio of an interleaved run carries over to the study's one baseline figure; the
        # raw milliseconds of a drifting machine would not. Both stand in the context.
        latency = self._latency(policy, timing.ratio * self.baseline["latency_ms"], timing.iqr_ms)
        memory = self.memory(path) if self.measure_memory or split == "test" else {}
        return self._measurement(policy, path, accuracy, latency, memory, context)

    @cached_property
    def _overflows(self) -> bool:
        return products_overflow(self.target)

    def _latency(self, policy: Policy, ms: float, spread: float) -> tuple[float, float]:
        """A latency measured here with its spread, or the other device's predicted one."""
        return (ms, spread) if self.other_device is None else self.other_device.predict(policy)

    def score(self, path: Path, split: str) -> Accuracy:
        """A file's quality on one split, in the target runtime."""
        from autocompress.measure.accuracy import file_accuracy

        data = self.pipeline.data
        return file_accuracy(self.target, path, getattr(data, split), data.metric)

    def memory(self, path: Path) -> dict[str, float]:
        """The peak memory of a file, where the system tells it."""
        from autocompress.measure.memory import peak_memory_bytes

        found = peak_memory_bytes(self.target.config, path)
        return {} if found is None else {"peak_memory_bytes": float(found)}

    def _measurement(
        self,
        policy: Policy,
        path: Path,
        accuracy: Accuracy,
        latency: tuple[float, float],
        memory: dict[str, float],
        context: dict[str, Any],
    ) -> Measurement:
        table = {} if self.other_device is None else {"table": self.other_device.table.facts}
        if accuracy.correct is not None:
            context = {**context, HITS: pack_hits(accuracy.correct)}
        cost = self.cost(policy)
        values = {
            "accuracy": accuracy.value,
            "latency_ms": latency[0],
            "macs": float(cost.macs),
            "params": float(cost.params),
            "bops": float(cost.bops),
            "size_bytes": float(path.stat().st_size),
            **memory,
        }
        return Measurement(
            values,
            {"accuracy": accuracy.stderr, "latency_ms": latency[1]},
            {"target": {**self.target.describe(), **table}, "images": accuracy.images, **context},
        )

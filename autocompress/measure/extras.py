"""Costs beside the latency that only some studies ask for: percentile, memory, energy, throughput.

Which there are stands in ``policy.costs``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from autocompress.errors import InputError, MeasurementError
from autocompress.measure.energy import inference_energy_mj, no_energy
from autocompress.measure.latency import Timing, paired_timing
from autocompress.measure.memory import no_memory, peak_memory_bytes
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import FEWEST_SINGLE, Plan
from autocompress.policy.costs import BY_NAME, ON_OTHERS, P99, WORST
from autocompress.targets import get_target
from autocompress.targets.base import Target

MEMORY, ENERGY, SAMPLE = "peak_memory_bytes", "energy_mj", "sample_ms"
_MAYBE = {
    ENERGY: (no_energy, "energy of an inference", "latency"),
    MEMORY: (no_memory, "peak memory of a file", "size"),
}
"""What not every machine tells: why it does not, what it is, and what goes with it."""


@dataclass
class ExtraCosts:
    """Measures them on exported files.

    Args:
        target: where they run.
        asked: names of those that a study's budget or objectives need; the others are told only
            where they cost hardly any time.
        others: further targets, which open the same files.
    """

    target: Target
    asked: frozenset[str] = frozenset()
    others: Sequence[Target] = ()
    _quiet: QuietSpeed = field(default_factory=QuietSpeed)
    _quiet_there: dict[int, QuietSpeed] = field(default_factory=lambda: defaultdict(QuietSpeed))

    def refuse(self) -> None:
        """Refuse what nothing here can measure, before anything is trained or searched.

        Raises:
            InputError: with the reason, and what helps.
        """
        absent = self.asked & {WORST, *ON_OTHERS} - {*self._on_others}
        if absent:
            raise InputError(
                f"{min(absent)} needs further targets. Name them in the study's `also_on`."
            )
        for other in self.others:
            if other.suffix != self.target.suffix:
                raise InputError(
                    f"All targets of a study open the same files: {self.target.name!r} opens "
                    f"{self.target.suffix} files, {other.name!r} {other.suffix}. Search for one of "
                    "them, and look at the other with `autocompress front RUN --target`."
                )
        for reason in self.untold().values():
            raise InputError(reason)

    def untold(self) -> dict[str, str]:
        """What of that the target cannot tell: each name with why not, and what helps."""
        found = {}
        table = self.asked - {MEMORY} if self.target.config.table is not None else ()
        if table:
            words = " and ".join(sorted(BY_NAME[name].word for name in table))
            why = (
                f"A table of another device tells its median latency alone, not {words}. Reach the "
                'device (`target: {device: "ssh://user@host"}`), or leave that out of the budget.'
            )
            found = dict.fromkeys(table, why)
        where = "here" if self.target.elsewhere is None else f"on {self.target.elsewhere.url}"
        for name, (why_not, what, instead) in _MAYBE.items():
            reason = why_not(self.target) if name in self.asked - set(found) else ""
            if reason:
                found[name] = (
                    f"The {what} cannot be limited {where}, for it is not measured: {reason}. "
                    f"Or limit what usually goes with it: `{instead}<=...`."
                )
        return found

    def memory(self, path: Path) -> dict[str, float]:
        """The peak memory of a file, where the system tells it.

        Raises:
            MeasurementError: it is asked for, and the system does not tell.
        """
        found = peak_memory_bytes(self.target, path)
        if found is None and MEMORY in self.asked:
            raise MeasurementError(
                "The budget limits the peak memory, which this system does not tell (Linux does). "
                "Leave that limit out, or measure on a device over ssh."
            )
        return {} if found is None else {MEMORY: float(found)}

    def after_timing(
        self, path: Path, baseline_file: Path, timing: Timing, latency_ms: float, base: Any = None
    ) -> dict[str, float]:
        """What follows the timing of a file, and must be alone on the machine as it is.

        Args:
            path: of the file.
            baseline_file: the uncompressed model.
            timing: of the file beside it.
            latency_ms: its latency in the study's figures.
            base: measured values of the uncompressed model; ``None`` for that itself.

        Raises:
            MeasurementError: what is asked for could not be measured.
        """
        found = self._percentile(timing, latency_ms, own=base is not None)
        if ENERGY in self.asked:
            found[ENERGY] = inference_energy_mj(self.target, path)
        if SAMPLE in self.asked:
            found[SAMPLE] = self._sample_ms(path, baseline_file, latency_ms, base)
        if self.others:
            found |= self._there(path, baseline_file, timing.ratio, base)
        return found

    @property
    def _on_others(self) -> tuple[str, ...]:
        return (*ON_OTHERS[: len(self.others)], WORST) if self.others else ()

    def _there(
        self, path: Path, baseline_file: Path, ratio: float, base: Mapping[str, float] | None
    ) -> dict[str, float]:
        """Latencies on the further targets, and the worst share of all."""
        found, shares = {}, [1.0 if base is None else ratio]
        for i, other in enumerate(self.others):
            plan, quiet = Plan(max_seconds=3.0), self._quiet_there[i]
            timing = paired_timing(other, path, baseline_file, plan=plan, quiet=quiet)
            if base is None:
                found[ON_OTHERS[i]] = timing.baseline_ms
            else:
                found[ON_OTHERS[i]] = timing.ratio * base[ON_OTHERS[i]]
                shares.append(timing.ratio)
        return {**found, WORST: max(shares)}

    def _percentile(self, timing: Timing, latency_ms: float, *, own: bool) -> dict[str, float]:
        """The 99th percentile, as far above the median as in the timing's own rounds."""
        tail, middle = (
            (timing.p99_ms, timing.latency_ms)
            if own
            else (timing.baseline_p99_ms, timing.baseline_ms)
        )
        if tail is not None:
            return {P99: tail / middle * latency_ms}
        if P99 in self.asked:
            raise MeasurementError(
                f"The 99th percentile needs {FEWEST_SINGLE} inferences in rounds that nothing "
                "disturbed, and this timing has fewer. Close other programs."
            )
        return {}

    @cached_property
    def _in_bulk(self) -> Target | None:
        """The target at the batch and the threads of its throughput, where they are its own."""
        config = self.target.config
        asked = config.throughput
        if asked is None:
            return None
        return get_target(
            config.model_copy(
                update={
                    "batch": asked.batch,
                    "threads": asked.threads or config.threads,
                    "throughput": None,
                }
            )
        )

    def _sample_ms(
        self, path: Path, baseline_file: Path, latency_ms: float, base: Mapping[str, float] | None
    ) -> float:
        """Milliseconds per sample, the reciprocal of the throughput."""
        where = self._in_bulk
        if where is None:
            return latency_ms / self.target.config.batch
        plan = Plan(max_seconds=4.0)
        timing = paired_timing(where, path, baseline_file, plan=plan, quiet=self._quiet)
        if base is None:
            return timing.baseline_ms / where.config.batch
        return timing.ratio * base[SAMPLE]

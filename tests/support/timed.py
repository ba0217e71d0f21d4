"""An evaluator whose timings are a closed form of the policy; workers import it by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autocompress.policy.policy import Policy
from autocompress.results.metric import Measurement
from autocompress.results.screened import Screened
from autocompress.results.trial import Phase, Trial

WHERE = {"runtime": "made up", "version": "1", "threads": 1}


def ratio_of(policy: Policy) -> float:
    """Share of the uncompressed latency: far from what any latency model predicts."""
    return 3.0 - sum(layer.prune_ratio for layer in policy.layers.values())


@dataclass
class Timed:
    """Measures in a worker; knows no estimate."""

    base_ms: float = 2.0
    observed: list[Trial] = field(default_factory=list)

    @property
    def baseline(self) -> Measurement:
        return self._measurement(1.0)

    def _measurement(self, ratio: float) -> Measurement:
        return Measurement(
            {"accuracy": 0.5, "latency_ms": ratio * self.base_ms, "macs": 1.0, "size_bytes": 1.0},
            {"accuracy": 0.01, "latency_ms": 0.01},
            {"timing": {"ratio": ratio, "disturbed": False}, "target": WHERE},
        )

    def estimate(self, policy: Policy) -> Measurement:
        raise AssertionError("a worker is not asked for estimates")

    def screen(self, policy: Policy, images: int) -> Screened:
        raise AssertionError("a worker does not screen")

    def evaluate(self, policy: Policy, phase: Phase, seed: int) -> Measurement:
        return self._measurement(ratio_of(policy))

    def score(self, policy: Policy, phase: Phase, seed: int) -> Measurement:
        return self.evaluate(policy, phase, seed)

    def files(self, policy: Policy, phase: Phase, seed: int) -> list[Path]:
        return []

    def timed(self, scored: Sequence[Measurement]) -> list[Measurement]:
        return list(scored)

    def observe(self, trial: Trial) -> None:
        raise AssertionError("a worker hears of no trial")

"""Trials that were never run, of a baseline of 90 % and 2 ms under half its latency."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.policy.budget import Budget
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.track.view import RunView

BASE = Measurement({"accuracy": 0.9, "latency_ms": 2.0}, {"accuracy": 0.003})
HALF = Budget("latency<=0.5x")


def trial(number: int, accuracy: float, ms: float, error: float = 0.003, **more: object) -> Trial:
    found = Measurement({"accuracy": accuracy, "latency_ms": ms}, {"accuracy": error})
    policy = Policy({"a": LayerPolicy(prune_ratio=min(0.99, number / 1000))})
    options: dict[str, object] = {"origin": "switch", **more}
    over = HALF.violations(found.values, BASE.values)
    return Trial(number, policy, measurement=found, violations=over, seconds=1.0, **options)  # type: ignore[arg-type]  # options of any type


def view(trials: Sequence[Trial], **more: object) -> RunView:
    return RunView.of(trials, BASE, run="runs/x", budget=HALF, **more)

"""A run made by hand: tracking needs no model."""

from __future__ import annotations

import math
import random
from pathlib import Path

from autocompress.policy.budget import Budget
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import Phase, Trial, TrialState
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal

LAYERS = [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)]
BASELINE = Measurement(
    {"accuracy": 0.88, "latency_ms": 1.3, "macs": 4.1e7, "params": 2.7e5, "size_bytes": 1.1e6},
    {"accuracy": 0.0046, "latency_ms": 0.02},
    {"target": {"runtime": "onnxruntime", "threads": 1}, "images": 5000, "split": "val"},
)
BUDGET = Budget("latency<=0.5x")


def measured(rng: random.Random, keep: float, bits: int, gain: float = 0.0) -> Measurement:
    """A measurement with the shape of a real trade-off; figures of no real model."""
    ratio = (0.12 + 0.88 * keep**1.3) * (0.55 if bits == 8 else 1.0) * rng.uniform(0.95, 1.05)
    accuracy = 0.88 - 0.55 * math.exp(-7 * keep) - (0.01 if bits == 8 else 0) + gain
    accuracy += rng.gauss(0, 0.01)
    timing = {
        "ratio": ratio,
        "ratio_low": ratio * 0.98,
        "ratio_high": ratio * 1.03,
        "median_ms": 1.3 * ratio,
        "baseline_ms": 1.3,
        "iqr_ms": 0.02,
        "noisy": False,
    }
    return Measurement(
        {
            "accuracy": min(0.865, accuracy),
            "latency_ms": 1.3 * ratio,
            "macs": 4.1e7 * keep,
            "params": 2.7e5 * keep,
            "size_bytes": 1.1e6 * keep * bits / 32,
        },
        {"accuracy": 0.005, "latency_ms": 0.015},
        {"timing": timing, "split": "val", "images": 5000},
    )


def policy(rng: random.Random, keep: float, bits: int) -> Policy:
    """A policy that keeps about that share of the channels."""
    layers = {}
    for name in LAYERS:
        ratio = min(0.9, max(0.0, 1 - keep + rng.uniform(-0.15, 0.15)))
        layers[name] = LayerPolicy(
            prune_ratio=round(ratio, 2) if name.endswith("conv1") else 0.0,
            weight_bits=bits,
            activation_bits=bits,
            rank_ratio=0.5 if rng.random() < 0.15 else None,
        )
    return Policy(layers)


class _Study:
    """Trials that are made one after another.

    Args:
        seed: of what is drawn.
        budget: that they are judged by.
    """

    def __init__(self, seed: int, budget: Budget) -> None:
        self.rng = random.Random(seed)
        self.budget = budget
        self.trials: list[Trial] = []

    def add(self, what: Policy, found: Measurement | None, **more: object) -> Trial:
        over = self.budget.violations(found.values, BASELINE.values) if found else {}
        made = Trial(
            len(self.trials),
            what,
            measurement=found,
            violations=over,
            seconds=self.rng.uniform(0.5, 3),
            **more,  # type: ignore[arg-type]  # options of any type
        )
        self.trials.append(made)
        return made

    def search(self, number: int) -> None:
        """Most are complete, some fail and some are rejected."""
        rng, origins = self.rng, ["uniform", "int8", "random", "solver", "switch", "tpe"]
        keep, bits = rng.uniform(0.2, 1.0), rng.choice([8, 32])
        origin = origins[number] if number < 3 else rng.choice(origins[2:])
        what, found = policy(rng, keep, bits), None
        more: dict[str, object] = {"origin": origin}
        if number % 11 == 10:
            reason = "ExportError: the file does not do what the model does\nat layer1"
            more |= {"state": TrialState.FAILED, "reason": reason}
        elif number % 7 == 6:
            found = Measurement({"latency_ms": 1.3 * keep, "macs": 4.1e7 * keep})
            more |= {"state": TrialState.REJECTED, "reason": "latency_ms is over the budget"}
        else:
            found = measured(rng, keep, bits, {"solver": 0.005, "switch": 0.02}.get(origin, 0.0))
        self.add(what, found, **more)

    def recover_and_verify(self, trial: Trial) -> None:
        """Trained without and with distillation; the latter is scored on test."""
        found = trial.measurement
        assert found is not None
        for distill, gain in ((None, 0.012), (Distill(), 0.019)):
            better = {**found.values, "accuracy": min(0.878, found["accuracy"] + gain)}
            again = self.add(
                Policy(trial.policy.layers, distill),
                Measurement(better, found.spread, found.context),
                origin="recover",
                phase=Phase("recover", 2.0, 1),
                parent=trial.number,
            )
        test = {**better, "accuracy": better["accuracy"] - 0.003}
        self.add(
            again.policy,
            Measurement(test, found.spread, {**found.context, "split": "test"}),
            origin="verify",
            phase=Phase("verify", 2.0),
            parent=again.number,
        )


def study_trials(count: int, seed: int = 0, *, feasible: bool = True) -> list[Trial]:
    """Search, recovery (with and without distillation) and verification, with every state."""
    study = _Study(seed, BUDGET if feasible else Budget("latency<=0.001x"))
    for number in range(count):
        study.search(number)
    made = study.trials
    good = [t for t in made if t.feasible] or [t for t in made if t.measurement]
    good.sort(key=lambda t: -(t.measurement.get("accuracy") or 0) if t.measurement else 0)
    for trial in good[:2]:
        study.recover_and_verify(trial)
    return study.trials


def make_run(
    root: Path,
    count: int = 30,
    *,
    seed: int = 0,
    feasible: bool = True,
    max_accuracy_drop: float | None = None,
) -> RunFolder:
    """Write a finished run into a folder; no trial loses less than 0.2 points."""
    folder = RunFolder.create(root)
    budget = BUDGET if feasible else Budget("latency<=0.001x")
    folder.write_study(
        {
            "name": "resnet20",
            "budget": [str(limit) for limit in budget.limits],
            "max_accuracy_drop": max_accuracy_drop,
            "model": {"factory": "pkg:resnet20"},
            "search": {"sampler": "guided", "seed": 0},
        }
    )
    folder.write_baseline(BASELINE)
    with Journal(folder) as journal:
        for trial in study_trials(count, seed, feasible=feasible):
            journal.record(trial)
    folder.write_front({"layers": LAYERS})
    return folder

"""What compared runs have to say: timed together, hypervolume over time, verdict and plots."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.measure.latency import Timing, paired_timing
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import Plan
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy
from autocompress.results.front import ParetoFront, reference_point
from autocompress.results.metric import ACCURACY, LATENCY, Measurement
from autocompress.results.trial import Trial
from autocompress.run.evaluator import StudyEvaluator

COLORS = ("#0072b2", "#d55e00", "#009e73", "#7f7f7f")
OUT = Path(__file__).parent / "out"
Events = Sequence[tuple[float, Trial]]


def shares(events: Events, baseline: Measurement) -> list[tuple[float, dict[str, Any]]]:
    """Evaluations with their seconds as plain data, latency as a share of the uncompressed one.

    Each process measures the uncompressed latency anew, so that only shares can be compared. How
    a policy was timed is kept, for those that turn out otherwise when they are timed together.
    """
    found = []
    for when, trial in events:
        if trial.seconds <= 0 or trial.measurement is None:
            continue
        values = dict(trial.measurement.values)
        values["latency_ms"] /= baseline["latency_ms"]
        timing = trial.measurement.context.get("timing")
        measured = Measurement(values, context={"timing": timing} if timing else {})
        found.append((round(when, 2), replace(trial, measurement=measured).as_dict()))
    return found


def uncompressed(run: dict[str, Any]) -> Measurement:
    """What a run's uncompressed model does, latency as a share of its own."""
    return Measurement({**run["baseline"], "latency_ms": 1.0})


def reference(run: dict[str, Any]) -> list[float]:
    """Accuracy and latency share over which hypervolume counts."""
    return list(reference_point(uncompressed(run), (ACCURACY, LATENCY)))


def replay(
    run: dict[str, Any], budget: Budget, latency: dict[str, float] | None = None
) -> list[tuple[float, int, Trial]]:
    """A run's evaluations with their seconds and places, at their own or at other latencies.

    Those that have no other latency are left out.
    """
    baseline, found = uncompressed(run), []
    for place, (when, data) in enumerate(run["trials"], 1):
        trial = Trial.from_dict(data)
        assert trial.measurement is not None
        values = dict(trial.measurement.values)
        if latency is not None:
            if trial.policy.digest not in latency:
                continue
            values["latency_ms"] = latency[trial.policy.digest]
        violations = budget.violations(values, baseline.values)
        judged = replace(trial, measurement=Measurement(values), violations=violations)
        found.append((when, place, judged))
    return found


def contenders(runs: dict[str, list[dict[str, Any]]], budget: Budget) -> dict[str, Policy]:
    """Policies that were on the front of their run, by its own timing, when they were measured."""
    found: dict[str, Policy] = {}
    for run in itertools.chain.from_iterable(runs.values()):
        floor = reference(run)[0]
        trials = [trial for _, _, trial in replay(run, budget)]
        for count, trial in enumerate(trials, 1):
            assert trial.measurement is not None
            front = ParetoFront.of(trials[:count], (ACCURACY, LATENCY))
            if trial.measurement["accuracy"] > floor and any(t is trial for t in front):
                found[trial.policy.digest] = trial.policy
    return found


def timed_together(evaluator: StudyEvaluator, policies: dict[str, Policy]) -> dict[str, float]:
    """Latency share of each policy: all of them timed in one go, thrice, in random order.

    One timing each would let noise decide between runs, for the many that a long run takes the
    quickest look quicker than they are, and an hour later the machine may be another one. Timings
    in which the uncompressed model ran slower than it can do not count, where there are others.
    """
    measurer = evaluator.measurer
    files = {digest: evaluator.export_variant(policy) for digest, policy in policies.items()}
    timings: dict[str, list[Timing]] = defaultdict(list)
    quiet, draw = QuietSpeed(deque()), random.Random(0)
    for _ in range(3):
        for digest in draw.sample(list(files), len(files)):
            plan, file = Plan(max_seconds=3.0), files[digest]
            found = paired_timing(
                measurer.target, file, measurer.baseline_file, plan=plan, quiet=quiet
            )
            timings[digest].append(found)
    for path in files.values():
        path.unlink()
    return {
        digest: statistics.median(
            [t.ratio for t in taken if not quiet.disturbed(t.baseline_ms)]
            or [min(taken, key=lambda t: t.baseline_ms).ratio]
        )
        for digest, taken in timings.items()
    }


def judge(
    run: dict[str, Any], budget: Budget, latency: dict[str, float], seconds: float
) -> dict[str, Any]:
    """A run with its curve, best accuracies and origins of the front, at the given latencies."""
    baseline, events = uncompressed(run), replay(run, budget, latency)
    front = ParetoFront.of([t for when, _, t in events if when <= seconds], (ACCURACY, LATENCY))
    return {
        **{k: v for k, v in run.items() if k not in ("trials", "baseline")},
        "evaluations": len(run["trials"]),
        "curve": curve(events, reference(run)),
        "accuracy_at": accuracies(front, baseline, budget),
        "origins": Counter(t.origin for t in front),
    }


def curve(
    events: Sequence[tuple[float, int, Trial]], reference: list[float]
) -> list[tuple[float, int, float]]:
    """Seconds, full evaluations and hypervolume after each evaluation that may have changed it."""
    found, seen = [], []
    for when, place, trial in events:
        seen.append(trial)
        volume = ParetoFront.of(seen, (ACCURACY, LATENCY)).hypervolume(reference)
        found.append((when, place, round(volume, 6)))
    return found


def accuracies(front: ParetoFront, baseline: Measurement, budget: Budget) -> dict[str, float]:
    """Best accuracy at most at a share of the uncompressed latency, from the budget's downwards."""
    found = {}
    bound = min(li.bound(baseline.values) for li in budget.limits if li.metric == "latency_ms")
    for part in (1.0, 0.9, 0.8, 0.7, 0.6):
        within = [t for t in front if t.measurement and t.measurement["latency_ms"] <= part * bound]
        if within:
            best = max(t.measurement["accuracy"] for t in within if t.measurement)
            found[f"{part * bound:g}x"] = round(best, 4)
    return found


def interval(values: list[float]) -> dict[str, float]:
    """Mean and the half-width of its 95 % interval (Student's t)."""
    from scipy.stats import t

    if len(values) < 2:
        return {"mean": values[0] if values else 0.0}
    width = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": round(statistics.mean(values), 6), "half_width_95": round(float(width), 6)}


def verdict(runs: dict[str, list[dict[str, Any]]], seconds: float) -> dict[str, Any]:
    """Hypervolumes when time is up, guided minus each other, and what guided needs for the
    hypervolume that the others end with: over the seeds that both ran."""
    final = {s: [reached(r, seconds) for r in rs] for s, rs in runs.items()}
    found: dict[str, Any] = {"hypervolume": {s: interval(v) for s, v in final.items()}}
    guided = {run["seed"]: run for run in runs.get("guided", [])}
    for sampler in (s for s in runs if s != "guided" and guided):
        pairs = [(guided[r["seed"]], r) for r in runs[sampler] if r["seed"] in guided]
        gains = [reached(ours, seconds) - reached(run, seconds) for ours, run in pairs]
        found[f"guided_minus_{sampler}"] = interval(gains)
        found[f"guided_wins_over_{sampler}"] = f"{sum(g > 0 for g in gains)} of {len(gains)}"
        ends = [reached(run, math.inf) for run in runs[sampler]]
        found[f"evaluations_of_{sampler}"] = [run["evaluations"] for run in runs[sampler]]
        found[f"hypervolume_at_the_end_of_{sampler}"] = interval(ends)
        found[f"evaluations_guided_needs_for_{sampler}"] = [
            needed(ours, reached(run, math.inf)) for ours, run in pairs
        ]
    return found


def needed(run: dict[str, Any], goal: float) -> int | None:
    """Evaluations of a run until a hypervolume: 0 where there is none to reach, ``None`` where the
    run never had it."""
    if goal <= 0:
        return 0
    return next((count for _, count, volume in run["curve"] if volume >= goal), None)


def reached(run: dict[str, Any], seconds: float) -> float:
    """The hypervolume after so many seconds of a run."""
    return max((volume for when, _, volume in run["curve"] if when <= seconds), default=0.0)


def draw(result: dict[str, Any], name: str) -> list[str]:
    """Hypervolume over time with bands over seeds, accuracy at fixed cost, origins."""
    import numpy as np
    import plotly.graph_objects as go

    OUT.mkdir(exist_ok=True)
    times = np.linspace(0, result["seconds"], 121)
    volumes, fixed, origins = go.Figure(), go.Figure(), go.Figure()
    settled: list[float] = []
    for color, (sampler, runs) in zip(
        itertools.cycle(COLORS), result["runs"].items(), strict=False
    ):
        stairs = np.array(
            [
                [max((v for t, _, v in r["curve"] if t <= x), default=0.0) for x in times]
                for r in runs
            ]
        )
        one = {"x": times, "mode": "lines", "legendgroup": sampler}
        for edge, fill in ((stairs.min(0), None), (stairs.max(0), "tonexty")):
            band = f"rgba{(*(int(color[i : i + 2], 16) for i in (1, 3, 5)), 0.25)}"
            volumes.add_scatter(
                y=edge, fill=fill, fillcolor=band, line_width=0, showlegend=False, **one
            )
        volumes.add_scatter(y=stairs.mean(0), name=sampler, line_color=color, **one)
        settled.append(stairs[:, len(times) // 10].min())
        shares = sorted({k for r in runs for k in r["accuracy_at"]}, reverse=True)
        means = [
            statistics.mean(r["accuracy_at"][k] for r in runs if k in r["accuracy_at"])
            for k in shares
        ]
        fixed.add_scatter(x=shares, y=means, name=sampler, mode="lines+markers", marker_color=color)
        total: Counter[str] = sum((Counter(r["origins"]) for r in runs), Counter())
        origins.add_bar(x=list(total), y=list(total.values()), name=sampler, marker_color=color)
    # the first evaluation brings most of it: drawn from zero, nothing else could be seen
    volumes.update_layout(
        xaxis_title="seconds",
        yaxis_title="hypervolume, mean and range over seeds",
        yaxis_range=[0.97 * min(settled), None],
    )
    fixed.update_layout(xaxis_title="latency, share of the uncompressed", yaxis_title="accuracy")
    origins.update_layout(xaxis_title="origin of front members", yaxis_title="count")
    paths = []
    for kind, figure in (("hypervolume", volumes), ("accuracy", fixed), ("origins", origins)):
        path = OUT / f"{name}-{kind}.html"
        figure.update_layout(template="plotly_white", title=f"{name}: {kind}", height=480)
        figure.write_html(path, include_plotlyjs=True)
        paths.append(f"benchmarks/out/{path.name}")
    return paths

"""What the benchmark says of compared runs, against brute force and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compared_runs import contenders, judge, shares, verdict
from scipy.stats import ttest_1samp

from autocompress.policy.budget import Budget
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial

BASE = Measurement({"accuracy": 0.9, "latency_ms": 2.0})
HALF = Budget("latency<=0.5x")


def run(seed: int, points: list[tuple[float, float]], policies: int = 0) -> dict[str, Any]:
    """A run with an evaluation (accuracy, share of the latency) every ten seconds."""
    events = []
    for number, (accuracy, share) in enumerate(points):
        values = {"accuracy": accuracy, "latency_ms": share * BASE["latency_ms"]}
        policy = Policy({"a": LayerPolicy(prune_ratio=(policies + number + 1) / 1000)})
        trial = Trial(number, policy, measurement=Measurement(values), seconds=8.0)
        events.append((10.0 * (number + 1), trial))
    return {"seed": seed, "baseline": dict(BASE.values), "trials": shares(events, BASE)}


def judged(made: dict[str, Any], seconds: float = 1e9, slower: float = 1.0) -> dict[str, Any]:
    """At its own latencies, or at others by a factor."""
    latency = {
        t["digest"]: slower * t["measurement"]["values"]["latency_ms"] for _, t in made["trials"]
    }
    return judge(made, HALF, latency, seconds)


def volume(points: list[tuple[float, float]]) -> float:
    """Area over 0.8 accuracy and under the uncompressed latency, counted in cells."""
    cells = 1000
    rise, share = np.meshgrid(np.arange(cells) + 0.5, np.arange(cells) + 0.5)
    covered = np.zeros((cells, cells), dtype=bool)
    for accuracy, latency in points:
        if latency <= 0.5:
            covered |= (0.8 + 0.2 * rise / cells < accuracy) & (share / cells > latency)
    return float(covered.mean() * 0.2)


@pytest.mark.parametrize("seed", range(3))
def test_a_curve_is_the_volume_of_what_was_there_by_then(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = [(float(rng.uniform(0.75, 0.95)), float(rng.uniform(0.3, 0.6))) for _ in range(12)]
    curve = judged(run(0, points))["curve"]
    assert [count for _, count, _ in curve] == list(range(1, 13))
    for seconds, count, found in curve:
        assert seconds == 10.0 * count
        assert found == pytest.approx(volume(points[:count]), abs=5e-4)


def test_other_latencies_decide_what_is_within_the_budget() -> None:
    made = run(0, [(0.88, 0.49), (0.86, 0.40)])
    assert judged(made)["accuracy_at"]["0.5x"] == 0.88
    assert judged(made, slower=1.1)["accuracy_at"]["0.5x"] == 0.86
    assert judged(made, slower=1.3)["curve"][-1][2] == 0


def test_contenders_were_on_the_front_when_they_were_measured() -> None:
    """The second is beaten at once, the third beats the first, the last two are worth nothing."""
    points = [(0.84, 0.45), (0.83, 0.46), (0.85, 0.44), (0.79, 0.30), (0.89, 0.55)]
    runs = {"guided": [run(0, points)], "tpe": [run(0, [(0.82, 0.40)], policies=100)]}
    found = contenders(runs, HALF)
    assert sorted(p.layers["a"].prune_ratio for p in found.values()) == [0.001, 0.003, 0.101]


def test_samplers_are_compared_over_the_seeds_that_both_ran() -> None:
    ours = [
        [(0.81, 0.5), (0.85, 0.5), (0.88, 0.5)],
        [(0.86, 0.5)],
        [(0.82, 0.5), (0.84, 0.5)],
        [(0.90, 0.5)],
    ]
    theirs = {1: [(0.80, 0.5), (0.83, 0.5)], 0: [(0.85, 0.5)], 2: [(0.88, 0.5)]}
    runs = {
        "guided": [judged(run(s, points)) for s, points in enumerate(ours)],
        "tpe": [judged(run(s, points)) for s, points in theirs.items()],
    }
    found = verdict(runs, 1e9)
    gains = [0.5 * (0.86 - 0.83), 0.5 * (0.88 - 0.85), 0.5 * (0.84 - 0.88)]
    assert found["guided_minus_tpe"]["mean"] == pytest.approx(np.mean(gains), abs=1e-6)
    low, high = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found["guided_minus_tpe"]["half_width_95"] == pytest.approx((high - low) / 2, abs=1e-6)
    assert found["guided_wins_over_tpe"] == "2 of 3"
    # seeds 1, 0 and 2: at once, with the second evaluation, never
    assert found["evaluations_guided_needs_for_tpe"] == [1, 2, None]
    assert found["evaluations_of_tpe"] == [2, 1, 1]
    assert found["hypervolume"]["guided"]["mean"] == pytest.approx(
        0.5 * np.mean([0.08, 0.06, 0.04, 0.10]), abs=1e-6
    )


def test_what_came_after_the_time_counts_only_where_the_end_is_meant() -> None:
    """Guided had 0.84 after its second evaluation; TPE ends with that, after its time."""
    guided = judged(run(0, [(0.82, 0.5), (0.84, 0.5), (0.86, 0.5)]), seconds=25.0)
    tpe = judged(run(0, [(0.81, 0.5), (0.81, 0.5), (0.84, 0.5)], policies=100), seconds=25.0)
    found = verdict({"guided": [guided], "tpe": [tpe]}, 25.0)
    assert found["guided_minus_tpe"]["mean"] == pytest.approx(0.5 * 0.03, abs=1e-6)
    assert found["hypervolume_at_the_end_of_tpe"]["mean"] == pytest.approx(0.5 * 0.04, abs=1e-6)
    assert found["evaluations_guided_needs_for_tpe"] == [2]
    assert verdict({"tpe": [tpe]}, 25.0).keys() == {"hypervolume"}


def test_nothing_is_had_without_an_evaluation() -> None:
    guided = judged(run(0, [(0.7, 0.5), (0.82, 0.5)]))
    tpe = judged(run(0, [(0.7, 0.5)] * 3, policies=100))
    assert verdict({"guided": [guided], "tpe": [tpe]}, 1e9)["evaluations_guided_needs_for_tpe"] == [
        0
    ]


def test_how_a_policy_was_timed_is_kept_and_nothing_else_of_its_context() -> None:
    timing = {"baseline_ms": 2.1, "disturbed": False}
    context = {"timing": timing, "split": "val", "hits": "..."}
    measured = Measurement({"accuracy": 0.9, "latency_ms": 1.0}, context=context)
    trial = Trial(0, Policy(), measurement=measured, seconds=1.0)
    ((_, kept),) = shares([(1.0, trial)], BASE)
    assert kept["measurement"]["context"] == {"timing": timing}
    assert kept["measurement"]["values"]["latency_ms"] == 0.5

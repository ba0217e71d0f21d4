"""The answer of a run, against its definition spelled out trial by trial."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError, NoAnswer
from autocompress.policy.budget import Budget
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.answer import best_of, decide, judged, rejudged
from autocompress.results.metric import ACCURACY, LATENCY, Measurement
from autocompress.results.trial import Phase, Trial, TrialState, worst_excess

BASE = Measurement({"accuracy": 0.9, "latency_ms": 2.0})
BUDGET = Budget("latency<=0.5x")


def trial(number: int, accuracy: float, ms: float, **more: object) -> Trial:
    found = Measurement({"accuracy": accuracy, "latency_ms": ms})
    policy = Policy({"a": LayerPolicy(prune_ratio=(number + 1) / 1000)})
    made = Trial(number, policy, measurement=found, **more)  # type: ignore[arg-type]  # options of any type
    return judged(made, BUDGET, BASE)


# whole images of a hundred, and latencies that differ, so that nobody is equal to anybody
ACCURACIES = st.integers(0, 100).map(lambda hits: hits / 100)
RUNS = st.lists(st.tuples(ACCURACIES, st.integers(1, 60)), max_size=12, unique_by=lambda p: p[1])


@given(RUNS, st.one_of(st.none(), st.integers(1, 60)))
def test_the_answer_is_what_its_definition_says(
    points: list[tuple[float, int]], most: int | None
) -> None:
    trials = [trial(i, a, ms / 30) for i, (a, ms) in enumerate(points)]
    found = decide(trials, BASE, (ACCURACY, LATENCY), BUDGET, most)
    within = [i for i, (_, ms) in enumerate(points) if ms <= 30]
    if most is None:
        # the most accurate, and of equally accurate ones the cheapest
        wanted = sorted(within, key=lambda i: (-points[i][0], points[i][1]))
    else:
        keeping = [i for i in within if 90 - round(100 * points[i][0]) <= most]
        wanted = sorted(keeping, key=lambda i: points[i][1])
    if wanted:
        assert found.answer() is trials[wanted[0]]
        assert (found.nearest, found.reason) == (None, "")
        return
    assert found.best is None
    with pytest.raises(NoAnswer) as error:
        found.answer()
    assert found.reason in str(error.value)
    if within:
        assert found.nearest is not None
        # the cheapest of the most accurate, which is on the front, where the tables show it
        nearest = min(within, key=lambda i: (-points[i][0], points[i][1]))
        assert found.nearest is trials[nearest]
        assert found.nearest in list(found.front)
        assert f"{most} points" in found.reason
    else:
        assert "No policy met the budget" in found.reason
        least = min(range(len(points)), key=lambda i: points[i][1], default=None)
        assert (found.nearest.number if found.nearest else None) == least


def test_a_drop_of_exactly_so_many_points_is_kept_to() -> None:
    """Accuracies come in single precision: 0.89 is 0.8899999856948853."""
    one = trial(0, 0.8899999856948853, 0.5)
    assert decide([one], BASE, (ACCURACY, LATENCY), BUDGET, 1.0).best is one


def test_what_verification_found_over_the_budget_keeps_to_nothing() -> None:
    lucky, sound = trial(0, 0.89, 0.98), trial(1, 0.89, 0.99)
    check = replace(trial(2, 0.88, 1.1, phase=Phase("verify"), parent=0), policy=lucky.policy)
    assert decide([lucky, sound], BASE, (ACCURACY, LATENCY), BUDGET, 1.0).best is lucky
    assert decide([lucky, sound, check], BASE, (ACCURACY, LATENCY), BUDGET, 1.0).best is sound


def test_another_budget_judges_measured_trials_only() -> None:
    slow = trial(0, 0.89, 1.5)
    assert not slow.feasible
    assert judged(slow, Budget("latency<=0.8x"), BASE).feasible
    rejected = replace(slow, state=TrialState.REJECTED)
    assert judged(rejected, Budget("latency<=0.8x"), BASE) is rejected


def test_a_limit_that_a_trial_alone_was_not_measured_by_is_not_kept_to() -> None:
    """Percentiles come along with some timings; what nothing was measured by is an error."""
    budget = Budget("latency<=1x", "latency_p99<=1x")
    base = replace(BASE, values={**BASE.values, "latency_p99_ms": 3.0})
    without = trial(0, 0.89, 0.5)
    assert without.measurement is not None
    told = {**without.measurement.values, "latency_p99_ms": 2.0}
    known = replace(without, measurement=replace(without.measurement, values=told))
    assert judged(known, budget, base).feasible
    missed = judged(without, budget, base)
    assert not missed.feasible
    # samplers refuse what is no number, and would take it for a limit that is kept
    assert missed.constraints["latency_p99_ms"] > 100
    assert missed.constraints["latency_ms"] == missed.violations["latency_ms"]
    assert judged(without, Budget("latency<=1x"), base).feasible
    with pytest.raises(InputError, match="latency_p99_ms"):
        judged(without, budget, BASE)


@given(RUNS)
def test_the_best_of_some_trials_is_an_answer_among_them(points: list[tuple[float, int]]) -> None:
    trials = [trial(i, a, ms / 30) for i, (a, ms) in enumerate(points)]
    found = best_of(trials, (ACCURACY, LATENCY))
    within = [i for i, (_, ms) in enumerate(points) if ms <= 30]
    if within:
        assert found is not None
        assert points[found.number][0] == max(points[i][0] for i in within)
    else:
        least = min(range(len(points)), key=lambda i: points[i][1], default=None)
        assert (found.number if found else None) == least
        assert decide(trials, BASE, (ACCURACY, LATENCY), BUDGET).nearest is found


def test_what_was_scored_elsewhere_or_not_to_its_end_is_no_best() -> None:
    sound = trial(0, 0.5, 0.5)
    others = [
        replace(trial(1, 0.9, 0.5), state=TrialState.REJECTED),
        trial(2, 0.9, 0.5, phase=Phase("verify")),
        replace(trial(3, 0.9, 0.5), measurement=None),
        replace(trial(4, 0.9, 0.5), measurement=Measurement({"accuracy": 0.9})),
    ]
    assert best_of([*others, sound], (ACCURACY, LATENCY)) is sound
    assert best_of(others, (ACCURACY, LATENCY)) is None


def test_a_search_that_goes_on_reconsiders_what_was_rejected() -> None:
    complete, estimate = trial(0, 0.8, 1.5), replace(trial(1, 0.8, 1.5), state=TrialState.REJECTED)
    looser, tighter = Budget("latency<=0.8x"), Budget("latency<=0.25x")
    assert rejudged(complete, looser, BASE) == judged(complete, looser, BASE)
    assert rejudged(estimate, looser, BASE).state is TrialState.DUPLICATE
    still = rejudged(estimate, tighter, BASE)
    assert still.state is TrialState.REJECTED
    assert still.violations == {"latency_ms": pytest.approx(2.0)}
    failed = replace(estimate, measurement=None)
    assert rejudged(failed, looser, BASE) is failed


def test_the_limit_that_is_missed_most_counts() -> None:
    assert worst_excess({}) == 0
    assert worst_excess({"macs": -0.5, "latency_ms": -0.2}) == -0.2
    for order in ({"macs": math.nan, "latency_ms": 0.5}, {"latency_ms": 0.5, "macs": math.nan}):
        assert worst_excess(order) == math.inf

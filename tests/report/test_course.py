"""What the report tells of a study's time and of its screening, against figures by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from handmade_run import BASELINE, BUDGET, study_trials

from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.report.course import course, screening
from autocompress.report.review import review
from autocompress.results.screened import Screened
from autocompress.results.trial import Trial, TrialState
from autocompress.track.view import RunView


def timed(trial: Trial, seconds: float, **context: float) -> Trial:
    """With the seconds of an evaluation and what they went into."""
    assert trial.measurement is not None
    found = replace(trial.measurement, context={**trial.measurement.context, **context})
    return replace(trial, seconds=seconds, measurement=found)


def complete(count: int) -> list[Trial]:
    found = [t for t in study_trials(40) if t.state is TrialState.COMPLETE]
    return [t for t in found if t.phase.kind == "search"][:count]


def test_time_is_told_by_what_it_went_into_and_adds_up() -> None:
    first, second, third = complete(3)
    trials = [
        timed(first, 10.0, build_s=4.0, score_s=1.0, time_s=3.0, waited_s=2.0),
        timed(second, 5.0, build_s=4.5),
        replace(third, state=TrialState.FAILED, measurement=None, seconds=7.0),
    ]
    rows = course(RunView.of(trials, BASELINE, budget=BUDGET))["spent"]
    told = {row["name"]: row["total"] for row in rows}
    assert told == pytest.approx(
        {
            "build, repair and train": 8.5,
            "failed evaluations": 7.0,
            "the rest": 2.5,
            "wait for a quiet machine": 2.0,
            "time the file": 1.0,
            "score": 1.0,
        }
    )
    assert sum(told.values()) == pytest.approx(sum(t.seconds for t in trials))
    assert [row["total"] for row in rows] == sorted(told.values(), reverse=True)


def test_screening_saves_the_evaluations_of_what_it_alone_has_seen() -> None:
    trials = [replace(t, seconds=s) for t, s in zip(complete(4), (1, 2, 4, 100), strict=True)]
    view = RunView.of(trials, BASELINE, budget=BUDGET)
    scores = {t.policy.untrained_digest: t.measurement.score for t in trials if t.measurement}
    # in the order of the quality, and then in the opposite one
    for sign, order in ((-1, 1.0), (1, -1.0)):
        looks = {digest: Screened(sign * s, 0.1, 64) for digest, s in scores.items()}
        others = {f"{i}": Screened(1.0, 0.1, 64) for i in range(5)}
        found = screening(view, {**looks, **others})
        assert found is not None
        assert (found.looked, found.evaluated, found.pairs) == (9, 4, 4)
        assert found.saved_s == 5 * 3.0
        assert found.order == pytest.approx(order)
    assert screening(view, {}) is None


def test_the_hypervolume_that_origins_added_is_all_there_is() -> None:
    view = RunView.of(study_trials(60), BASELINE, budget=BUDGET)
    added = sum(row["hypervolume"] for row in course(view)["origins"])
    assert added == pytest.approx(view.hypervolume, rel=1e-4)
    assert added > 0


def test_sensitivity_is_the_worst_look_at_a_layer_alone() -> None:
    mild, hard = LayerPolicy(prune_ratio=0.25), LayerPolicy(prune_ratio=0.5)
    trials = complete(2)
    trials = [
        replace(t, policy=Policy({"a": p, "b": mild}))
        for t, p in zip(trials, (mild, hard), strict=True)
    ]
    looks = {
        Policy({"a": mild}).digest: Screened(0.1, 0.01, 64),
        Policy({"a": hard}).digest: Screened(0.4, 0.01, 64),
        Policy({"a": hard, "b": mild}).digest: Screened(2.0, 0.01, 64),
    }
    found = review(
        RunView.of(trials, BASELINE, budget=BUDGET), looks, {"facts": {"b": {"ms": 1.0}}}
    )
    told = {"sensitivity": 0.4, "alone": "50% of the channels"}
    assert found["facts"] == {"a": told, "b": {"ms": 1.0}}

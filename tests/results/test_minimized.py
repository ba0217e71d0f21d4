"""A quality of which less is better: a loss is a loss in every judgement, and named everywhere."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from autocompress.controller.expected_improvement import QualityForecast
from autocompress.controller.promotion import in_doubt
from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.report.review import review
from autocompress.report.tables import summary_json
from autocompress.report.verdict import verdict
from autocompress.results.answer import decide, drop, judged
from autocompress.results.difference import SCORES, difference, pack_scores
from autocompress.results.front import ParetoFront, reference_point
from autocompress.results.metric import (
    ACCURACY,
    FRACTION,
    LATENCY,
    Allowance,
    Measurement,
    Metric,
    objectives,
)
from autocompress.results.trial import Phase, Trial
from autocompress.run.comparing import compare_claims
from autocompress.track.view import RunView

MSE = Metric("mse", "px", "minimize")
BASE = Measurement({"mse": 0.2, "latency_ms": 2.0, "macs": 100.0}, metrics=(MSE,))
BUDGET = Budget("latency<=0.6x")
BY = (MSE, LATENCY)


def measured(mse: float, ms: float, stderr: float = 0.001) -> Measurement:
    values = {"mse": mse, "latency_ms": ms, "macs": 50.0}
    return Measurement(values, {"mse": stderr}, {"split": "val"}, (MSE,))


def trial(number: int, mse: float, ms: float, **more: object) -> Trial:
    policy = Policy({"a": LayerPolicy(prune_ratio=(number + 1) / 1000)})
    made = Trial(number, policy, measurement=measured(mse, ms), **more)  # type: ignore[arg-type]  # options of any type
    return judged(made, BUDGET, BASE)


FIVE_TIMES, NEAR, BETTER = trial(0, 1.0, 0.3), trial(1, 0.21, 0.8), trial(2, 0.19, 1.1)


def test_a_five_times_larger_error_is_never_the_answer() -> None:
    trials = [FIVE_TIMES, NEAR, BETTER]
    assert decide(trials, BASE, BY, BUDGET).best is BETTER
    found = decide(trials, BASE, BY, BUDGET, max_quality_drop="10%")
    assert found.best is NEAR  # the cheapest that loses no more than 0.02
    assert decide(trials, BASE, BY, BUDGET, max_quality_drop=0.5).best is NEAR
    assert decide(trials, BASE, BY, BUDGET, max_quality_drop=0.9).best is FIVE_TIMES
    assert drop(FIVE_TIMES, BASE) == pytest.approx(0.8)
    assert drop(BETTER, BASE) == pytest.approx(-0.01)
    refused = decide([FIVE_TIMES], BASE, BY, BUDGET, max_quality_drop="10%")
    assert refused.best is None
    assert refused.nearest is FIVE_TIMES
    assert "a loss of 10% of mse: the least that one loses is 0.8 px" in refused.reason


def test_the_front_is_ordered_by_what_is_better() -> None:
    worse = trial(3, 0.3, 0.9)  # costs more than NEAR, and is worse
    front = ParetoFront.of([FIVE_TIMES, NEAR, BETTER, worse], BY)
    assert [t.number for t in front] == [0, 1, 2]
    assert front.pick("best") is BETTER
    assert front.pick("most-accurate") is BETTER


def test_the_hypervolume_counts_what_is_under_twice_the_error() -> None:
    reference = reference_point(BASE, BY)
    assert reference == pytest.approx([0.4, 2.0])
    front = ParetoFront.of([FIVE_TIMES, NEAR, BETTER], BY)
    by_hand = (0.4 - 0.21) * (2.0 - 0.8) + (0.21 - 0.19) * (2.0 - 1.1)
    assert front.hypervolume(reference) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("metric", "base", "useless"),
    [
        (ACCURACY, 0.9, 0.8),
        (Metric("rate", FRACTION, "minimize"), 0.05, 0.15),
        (Metric("psnr", "dB", "maximize"), 30.0, 27.0),
        (Metric("psnr", "dB", "maximize", 3.0), 40.0, 37.0),
        (Metric("perplexity", "", "minimize", "25%"), 20.0, 25.0),
        (MSE, 0.0, 1.0),
        (Metric("reward", "", "maximize"), -50.0, -55.0),
    ],
)
def test_what_makes_a_model_useless(metric: Metric, base: float, useless: float) -> None:
    assert metric.useless(base) == pytest.approx(useless)


def view(*trials: Trial, **more: object) -> RunView:
    return RunView.of(trials, BASE, run="r", budget=BUDGET, objectives=BY, **more)


def test_reports_name_the_metric_its_unit_and_a_loss() -> None:
    uniform = trial(4, 0.25, 0.9, origin="uniform")
    seen = view(FIVE_TIMES, NEAR, uniform)
    said = verdict(seen)
    text = " ".join([said.headline, *said.sentences])
    assert seen.best is NEAR
    assert "mse 0.21 px on val (+0.01 ± 0.001 px against the uncompressed model)" in text
    (one,) = said.comparisons
    assert one.outcome == "won"
    assert "beat uniform (trial 4) by -0.04" in str(one)
    assert "accuracy" not in text
    summary = json.loads(json.dumps(summary_json(seen)))
    assert summary["quality"] == {"name": "mse", "unit": "px", "goal": "minimize"}
    assert summary["baseline"]["mse"] == 0.2
    members = {t["number"]: t["mse"] for t in summary["trials"]}
    assert [members[number] for number in summary["front"]] == [1.0, 0.21]
    assert "accuracy" not in json.dumps(summary).replace("max_accuracy_drop", "")
    page = review(seen, {}, {})
    assert page["quality"]["title"] == "mse, px"
    assert page["range"][0] < 0.2 < page["range"][1]
    assert max(seen.history, key=lambda p: p.trial).best_quality == 0.21


def test_losing_to_a_simple_way_is_said() -> None:
    uniform = trial(4, 0.20, 0.9, origin="uniform")
    assert "did not beat uniform" in verdict(view(NEAR, uniform)).headline


def test_claims_are_held_to_in_both_directions() -> None:
    """Twice the error was once called faster and better, hence kept."""

    def reasons(mse: float) -> list[str]:
        base = replace(BASE)
        return compare_claims(
            measured(mse, 0.8), base, measured(0.21, 0.8), base, same_weights=True, same_data=True
        )

    assert reasons(0.21) == reasons(0.215) == []
    for off in (1.0, 0.1):
        (why,) = reasons(off)
        assert why.startswith("mse")
        assert "claimed 0.21" in why


def test_a_claim_of_an_early_recipe_is_held_to_under_its_old_name() -> None:
    old = Measurement({"accuracy": -0.2, "latency_ms": 0.8})
    own = Measurement(
        {"less_error": -0.5, "latency_ms": 0.8}, metrics=(Metric("less_error", "", "maximize"),)
    )
    (why,) = compare_claims(own, own, old, old, same_weights=True, same_data=True)
    assert "less_error -0.5" in why


def test_trials_in_doubt_are_those_that_noise_cannot_tell_from_the_least_error() -> None:
    close = replace(NEAR, number=5, measurement=measured(0.2105, 0.8))
    assert [t.number for t in in_doubt([FIVE_TIMES, NEAR, close])] == [1, 5]


def test_forecasts_rise_with_the_divergence() -> None:
    forecast = QualityForecast([(0.5, 0.3), (1.0, 0.25), (2.0, 0.9)], 0.2, 0.001, "minimize")
    found = [forecast(kl) for kl in np.linspace(0, 2, 9)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.2)
    assert found[-1] == pytest.approx(0.9)


def test_scores_of_the_same_samples_tell_small_differences() -> None:
    rng = np.random.default_rng(0)
    shared = rng.random(1000)

    def scored(shift: float, seed: int) -> Measurement:
        each = shared + shift + 0.01 * np.random.default_rng(seed).standard_normal(1000)
        return Measurement(
            {"mse": float(each.mean())},
            {"mse": float(each.std() / 1000**0.5)},
            {"split": "val", "images": 1000, SCORES: pack_scores(each)},
            (MSE,),
        )

    first, second = scored(0.0, 1), scored(0.005, 2)
    found = difference(first, second)
    assert found.paired
    assert found.gain == pytest.approx(-found.points) == pytest.approx(0.005, abs=0.001)
    assert found.stderr == pytest.approx(0.01 * 2**0.5 / 1000**0.5, rel=0.1)
    assert found.stderr < 0.1 * difference(first, replace(second, context={"split": "val"})).stderr


def test_records_say_what_they_measured_and_old_ones_are_of_accuracies() -> None:
    data = json.loads(json.dumps(measured(0.2, 1.0).as_dict()))
    assert data["metrics"] == [{"name": "mse", "unit": "px", "goal": "minimize"}]
    assert Measurement.from_dict(data) == measured(0.2, 1.0)
    assert pickle.loads(pickle.dumps(measured(0.2, 1.0))) == measured(0.2, 1.0)
    old = Measurement.from_dict({"values": {"accuracy": 0.9}})
    assert (old.quality, old.score) == (ACCURACY, 0.9)
    assert "metrics" not in old.as_dict()
    with pytest.raises(InputError, match="no metric 'mse'"):
        Measurement({"mse": 0.2})


def test_objectives_of_earlier_studies_name_the_quality() -> None:
    assert objectives(("accuracy", "latency_ms"), (MSE,)) == (MSE, LATENCY)
    assert objectives(("quality", "latency_ms"), (MSE,)) == (MSE, LATENCY)
    assert objectives(("quality", "macs"), (ACCURACY,))[0] is ACCURACY


@pytest.mark.parametrize("text", ["", "2 %%", "-1", "0", "nan", "much"])
def test_a_loss_that_cannot_be_allowed_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"reads like 0\.3"):
        Allowance.parse(text)


def test_allowances_are_absolute_or_a_share() -> None:
    assert Allowance.parse("2%").of(-30.0) == pytest.approx(0.6)
    assert Allowance.parse(0.3).of(30.0) == Allowance.parse("0.3").of(1.0) == 0.3


def test_a_quality_that_test_cannot_tell_is_said_with_or_without_an_answer() -> None:
    context = {"split": "test", "problems": ["The metric 'mse' failed: no positives"]}
    told = Measurement({"latency_ms": 0.8, "macs": 50.0}, {}, context, (MSE,))
    check = replace(NEAR, number=9, measurement=told, phase=Phase("verify"), parent=NEAR.number)
    for most in (0.5, 0.001):
        seen = view(NEAR, check, max_quality_drop=most)
        assert (seen.best is None) == (most < 0.01)
        assert "The metric 'mse' failed: no positives" in " ".join(verdict(seen).sentences)
        assert json.loads(json.dumps(summary_json(seen)))["trials"][-1]["mse"] is None

"""What is expected at other budgets, on models whose quality and costs are closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from analytic import AnalyticEvaluator
from analytic_study import context, search

from autocompress.controller.context import Context
from autocompress.controller.guided.forecast import COVERAGE, CalibratedForecast, Forecaster
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy


def searched(layers: int = 4, seed: int = 0, trials: int = 25) -> Context:
    """A search for 0.6 of the latency that has ended."""
    ctx = context(AnalyticEvaluator(layers, seed), trials=trials, seed=seed)
    search(ctx)
    return ctx


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_the_policy_is_nearly_the_best_there_is(seed: int, share: float) -> None:
    """Brute force over all 4,096 policies; estimates are kept to with their error on top."""
    ctx = searched(seed=seed)
    evaluator = ctx.evaluator
    assert isinstance(evaluator, AnalyticEvaluator)
    found = Forecaster(ctx, 60.0).at(Budget(f"latency<={share}x"))
    whole = evaluator.baseline["latency_ms"]
    bound = share * whole
    levels = [range(len(choice.levels)) for choice in ctx.space.choices]
    losses = [
        evaluator._loss(policy)
        for one in itertools.product(*levels)
        if evaluator._latency(policy := ctx.space.decode(one)) * 1.0164 <= bound
    ]
    assert found is not None
    assert evaluator._latency(found.policy) <= bound
    assert evaluator._loss(found.policy) <= 1.1 * min(losses) + 1e-3
    assert found.divergence == pytest.approx(5.0 * evaluator._loss(found.policy))
    cost = found.costs["latency_ms"]
    assert cost.value == pytest.approx(evaluator._latency(found.policy))
    assert cost.high - cost.value == pytest.approx(0.0164 * cost.value)


def test_what_no_policy_reaches_has_no_answer() -> None:
    forecaster = Forecaster(searched(), 60.0)
    assert forecaster.at(Budget("latency<=0.001x")) is None
    least, most = forecaster.ends()
    assert forecaster.at(Budget(f"latency<={0.9 * least / most}x")) is None
    assert forecaster.at(Budget(f"latency<={1.05 * least / most}x")) is not None
    all_of_it = forecaster.at(Budget())
    assert all_of_it is not None
    assert all_of_it.policy == Policy()
    assert all_of_it.quality.value == pytest.approx(0.9)


def test_nothing_is_evaluated_and_what_was_screened_is_not_screened_again() -> None:
    ctx = searched()
    evaluator = ctx.evaluator
    assert isinstance(evaluator, AnalyticEvaluator)
    evaluated, screened = len(evaluator.evaluated), evaluator.screened
    forecaster = Forecaster(ctx, 60.0)
    assert evaluator.screened == screened
    forecaster.at(Budget("latency<=0.5x"), several=1)
    assert evaluator.screened <= screened + 1
    assert len(evaluator.evaluated) == evaluated


def test_a_search_that_screened_nothing_is_asked_in_the_time_given() -> None:
    ctx = context(AnalyticEvaluator(4), "random", trials=12)
    search(ctx)
    assert Forecaster(ctx, 60.0).at(Budget("latency<=0.5x")) is not None
    hurried = context(AnalyticEvaluator(4), "random", trials=12)
    search(hurried)
    assert Forecaster(hurried, 0.0).at(Budget("latency<=0.5x")) is not None


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_intervals_hold_as_often_as_they_say(goal: str) -> None:
    """Fresh draws of a law whose errors grow with the loss, as those of screening do.

    40 laws of 40 trials, 25 fresh draws each. Coverage of the jackknife varies from law to law by
    about 5 points; the mean of 40 by 0.8, so that below 87 % is 4 standard deviations off. Draws
    are fixed.
    """
    sign, draw, inside = (1.0 if goal == "maximize" else -1.0), np.random.default_rng(0), []

    def drawn(count: int) -> list[tuple[float, float]]:
        kl = draw.uniform(0.0, 1.0, count)
        loss = 0.3 * kl * (1 + 0.15 * draw.standard_normal(count))
        return list(zip(kl, 0.9 - sign * loss + 0.003 * draw.standard_normal(count), strict=True))

    for _ in range(40):
        forecast = CalibratedForecast(drawn(40), 0.9, 0.003, goal)  # type: ignore[arg-type]  # one of the two
        for kl, quality in drawn(25):
            interval = forecast(kl)
            inside.append(interval.low <= quality <= interval.high)
    assert COVERAGE - 0.03 <= float(np.mean(inside)) <= 0.97


def test_of_few_trials_no_interval_is_told() -> None:
    interval = CalibratedForecast(
        [(0.1 * i, 0.9 - 0.05 * i) for i in range(8)], 0.9, 0.01, "maximize"
    )
    assert interval(0.15).value == pytest.approx(0.825)
    assert math.isinf(interval(0.15).low)
    known = CalibratedForecast([(0.1 * i, 0.9 - 0.05 * i) for i in range(9)], 0.9, 0.01, "maximize")
    assert known(0.15).low > 0


def test_trials_that_failed_teach_nothing() -> None:
    ctx = searched()
    trials = ctx.ledger.trials
    before = Forecaster(ctx, 60.0).learned_from
    ctx.ledger.trials[0] = replace(trials[0], measurement=None, violations={})
    assert Forecaster(ctx, 60.0).learned_from == before - 1

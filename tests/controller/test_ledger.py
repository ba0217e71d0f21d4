"""The ledger, the screener and the feasibility judge, each alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from analytic import AnalyticEvaluator, make_space
from analytic_study import Kept, context, search
from hypothesis import given
from hypothesis import strategies as st

from autocompress.controller.feasibility import Feasibility
from autocompress.controller.ledger import Ledger
from autocompress.controller.screener import Screener
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.results.metric import ACCURACY, LATENCY, Measurement
from autocompress.results.screened import Screened
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState

OBJECTIVES = (ACCURACY, LATENCY)
MEASURED = Measurement({"accuracy": 0.8, "latency_ms": 1.0})
RECOVERED = Phase("recover", 1.0, 1)


def policy(ratio: float) -> Policy:
    return Policy({"l0": LayerPolicy(prune_ratio=ratio)})


def trial(number: int, state: TrialState, phase: Phase = SEARCH) -> Trial:
    found = None if state is TrialState.FAILED else MEASURED
    return Trial(number, policy(number / 16), phase, state, measurement=found)


def every_ending(start: int) -> list[Trial]:
    return [
        trial(start + 4 * i + j, state, phase)
        for i, phase in enumerate((SEARCH, RECOVERED))
        for j, state in enumerate(TrialState)
    ]


def test_one_door_records_everything_and_teaches_what_was_measured() -> None:
    """Of an earlier session or kept now: complete trials teach once, in order; sinks hear of new
    trials only."""
    sinks, taught = [Kept(), Kept()], list[Trial]()
    earlier, new = every_ending(0), every_ending(8)
    ledger = Ledger(OBJECTIVES, sinks, taught.append, earlier)
    assert taught == [t for t in earlier if t.state is TrialState.COMPLETE]
    assert all(ledger.keep(t) is t for t in new)
    assert ledger.trials == [*earlier, *new]
    assert all(sink.trials == new for sink in sinks)
    assert taught == [t for t in ledger.trials if t.state is TrialState.COMPLETE]


def test_a_trial_is_on_disk_before_it_teaches() -> None:
    sink = Kept()
    ledger = Ledger(OBJECTIVES, [sink], lambda t: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ledger.keep(trial(0, TrialState.COMPLETE))
    assert len(sink.trials) == 1


def test_complete_and_rejected_trials_settle_a_policy_at_their_phase() -> None:
    trials = every_ending(0)
    ledger = Ledger(OBJECTIVES, earlier=trials)
    settling = (TrialState.COMPLETE, TrialState.REJECTED)
    for one in trials:
        found = ledger.known(one.policy, one.phase)
        assert found is (one if one.state in settling else None)
        assert ledger.known(one.policy, Phase("verify")) is None
    distilled = replace(trials[0].policy, distill=Distill())
    assert ledger.known(distilled) is trials[0], "the search trains nothing"
    first = next(t for t in trials if t.phase == RECOVERED and t.state is TrialState.COMPLETE)
    assert ledger.known(replace(first.policy, distill=Distill()), RECOVERED) is None


def test_numbers_go_on_after_the_last_one() -> None:
    assert Ledger(OBJECTIVES).number() == 0
    ledger = Ledger(OBJECTIVES, earlier=[trial(7, TrialState.FAILED), trial(3, TrialState.FAILED)])
    assert [ledger.number(), ledger.number()] == [8, 9]


@pytest.mark.parametrize("slots", [1, 3])
def test_a_study_teaches_its_estimator_every_complete_trial_once(slots: int) -> None:
    evaluator = AnalyticEvaluator(5, violent="crash", share=0.3)
    ctx = context(evaluator, "random", trials=15)
    ctx.executor.slots = slots  # type: ignore[misc]  # a class variable there
    search(ctx)
    complete = [t for t in ctx.ledger.trials if t.state is TrialState.COMPLETE]
    assert evaluator.observed == complete
    assert {t.state for t in ctx.ledger.trials} > {TrialState.COMPLETE}
    resumed = AnalyticEvaluator(5)
    context(resumed, "random", earlier=ctx.ledger.trials)
    assert resumed.observed == complete


def test_a_policy_is_screened_once() -> None:
    evaluator, space = AnalyticEvaluator(3), make_space(3, distill=[False, True])
    before = {(space.decode((1, 1, 1, 0)).untrained_digest, 32): Screened(9.0, 0.1, 32)}
    screener = Screener(space, evaluator, 32, before)
    assert screener((1, 1, 1, 0)).kl == screener((1, 1, 1, 1)).kl == 9.0
    assert evaluator.screened == 0
    first = screener((2, 0, 0, 0))
    assert first == screener((2, 0, 0, 1)) == evaluator.screen(space.decode((2, 0, 0, 0)), 32)
    assert evaluator.screened == 2
    assert len(before) == 2, "what is found goes into the mapping that was handed in"
    assert screener.seconds > 0


@given(st.floats(0.1, 3.0), st.floats(0.0, 0.5), st.floats(0.1, 2.0))
def test_estimates_are_judged_by_their_error(ms: float, sigma: float, share: float) -> None:
    base = Measurement({"accuracy": 0.9, "latency_ms": 2.0, "macs": 10.0})
    judge = Feasibility(Budget(f"latency<={share}x"), base)
    estimate = Measurement({"latency_ms": ms, "macs": 99.0}, {"latency_ms": sigma})
    bound = share * 2.0
    over = judge.infeasible_by_estimate(estimate)
    if abs(ms - 3 * sigma - bound) > 1e-9:
        assert (over is not None) == (ms - 3 * sigma > bound)
    if abs(ms + 1.64 * sigma - bound) > 1e-9:
        assert judge.likely(estimate) == (ms + 1.64 * sigma <= bound)
    assert not (over and judge.likely(estimate))


def test_bounds_are_the_tighter_of_budget_and_baseline() -> None:
    base = Measurement({"accuracy": 0.9, "latency_ms": 2.0, "macs": 10.0})
    judge = Feasibility(Budget("latency<=3ms", "latency<=0.9x", "macs<=0.5x"), base)
    assert judge.bounds("latency_ms") == {"latency_ms": pytest.approx(1.8), "macs": 5.0}
    assert Feasibility(Budget(), base).bounds("latency_ms") == {"latency_ms": 2.0}
    assert Feasibility(Budget(), base).bounds("energy") == {}


def test_a_limit_of_what_is_not_estimated_is_left_to_the_measurement() -> None:
    base = Measurement({"accuracy": 0.9, "latency_ms": 2.0, "peak_memory_bytes": 1e6})
    judge = Feasibility(Budget("memory<=0.5x"), base)
    estimate = Measurement({"latency_ms": 1.0})
    assert judge.infeasible_by_estimate(estimate) is None
    assert judge.likely(estimate)

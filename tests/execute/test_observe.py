"""The parent's latency model learns every finished trial, wherever and whenever it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from known_times import RULES, known_model
from measured_network import images, small
from timed import WHERE, Timed, ratio_of

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.protocols import Executor, Job
from autocompress.estimate.estimator import Estimator
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import LatencyModel
from autocompress.execute.local import InProcessExecutor
from autocompress.execute.pool import ProcessPoolExecutor
from autocompress.execute.timing import TimingExecutor
from autocompress.model.cost import Cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.budget import Budget
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.results.metric import Measurement
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState

_SETTINGS = CompressionSettings()
_INVENTORY = take_inventory(small(), images())
_SPACE = SpaceConfig.read({"rules": [RULES]}).bind(_INVENTORY)
_HALF = LayerPolicy(prune_ratio=0.5)
_POLICY = Policy({"first": _HALF, "deep": _HALF})
_POLICIES = (_POLICY, Policy({"last": _HALF}))


def no_student(name: str) -> Cost:
    raise AssertionError(name)


def known() -> LatencyModel:
    return known_model(LayerPlan(_INVENTORY, _SETTINGS), _SPACE)


def made() -> Estimator:
    estimator = Estimator(_INVENTORY, _SETTINGS, no_student, WHERE)
    estimator.predict_with(known())
    return estimator


@dataclass
class Parent(Timed):
    """Estimates by the real estimator, which the ledger tells of finished trials."""

    estimator: Estimator | None = None

    def estimate(self, policy: Policy) -> Measurement:
        assert self.estimator is not None
        return self.estimator.estimate(policy)

    def observe(self, trial: Trial) -> None:
        assert self.estimator is not None
        self.estimator.observe(trial)


def context(executor: Executor, estimator: Estimator, trials: list[Trial]) -> Context:
    parent = Parent(estimator=estimator)
    return Context(_SPACE, parent, executor, Budget(), SearchConfig(), [], trials)


@pytest.fixture(params=["local", "pool", "ray"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made: Executor
    if request.param == "local":
        made = InProcessExecutor(Timed())
    elif request.param == "pool":
        made = TimingExecutor(ProcessPoolExecutor(Timed, 2), Timed())
    else:
        from autocompress.execute.ray_actors import RayExecutor

        request.getfixturevalue("ray_offline")
        made = TimingExecutor(RayExecutor(Timed, 2), Timed())
    yield made
    made.close()


def told_directly() -> Measurement:
    """The estimate of a latency model that was handed the same ratios without any study."""
    model = known()
    for policy in _POLICIES:
        model.observe(policy, ratio_of(policy))
    ms, sigma = model.predict(_POLICY)
    return Measurement({"latency_ms": ms}, {"latency_ms": sigma})


def test_the_estimate_moves_to_what_was_measured_here_or_in_another_process(
    executor: Executor,
) -> None:
    estimator = made()
    before = estimator.estimate(_POLICY)
    study = context(executor, estimator, [])
    jobs = [Job(study.ledger.number(), p, SEARCH, 0) for p in _POLICIES]
    trials = study.run_jobs(jobs, "search")
    assert [t.reason for t in trials] == ["", ""]
    after, wanted = estimator.estimate(_POLICY), told_directly()
    measured = ratio_of(_POLICY) * estimator.latency_model.baseline_ms  # type: ignore[union-attr]  # it has one
    assert abs(after["latency_ms"] - measured) < 0.6 * abs(before["latency_ms"] - measured)
    assert after["latency_ms"] == pytest.approx(wanted["latency_ms"], rel=1e-6)
    assert after.spread["latency_ms"] == pytest.approx(wanted.spread["latency_ms"], rel=1e-6)


def test_trials_of_an_earlier_session_teach_as_if_they_were_of_this_one() -> None:
    measured = [Timed().evaluate(p, SEARCH, 0) for p in _POLICIES]
    trials = [Trial(i, p, measurement=measured[i]) for i, p in enumerate(_POLICIES)]
    written = [Trial.from_dict(json.loads(json.dumps(t.as_dict()))) for t in trials]
    estimator = made()
    context(InProcessExecutor(Timed()), estimator, written)
    after = estimator.estimate(_POLICY)
    assert after["latency_ms"] == pytest.approx(told_directly()["latency_ms"], rel=1e-6)


def finished(**changes: Any) -> Trial:
    measurement = Timed().evaluate(_POLICY, SEARCH, 0)
    return replace(Trial(0, _POLICY, measurement=measurement), **changes)


def with_context(**changes: Any) -> Trial:
    found = Timed().evaluate(_POLICY, SEARCH, 0)
    return finished(measurement=replace(found, context={**found.context, **changes}))


def learnt(estimator: Estimator) -> int:
    assert estimator.latency_model is not None
    return len(estimator.latency_model.measured) - len(known().measured)


def test_the_same_trial_counts_once_and_another_phase_of_it_again() -> None:
    estimator = made()
    for _ in range(2):
        estimator.observe(finished())
        estimator.observe(finished(number=7))
        assert learnt(estimator) == 1
    estimator.observe(finished(phase=Phase("verify")))
    estimator.observe(finished(phase=Phase("recover", 2.0, 1)))
    assert learnt(estimator) == 3
    estimator.predict_with(known())  # one that has heard of nothing
    estimator.observe(finished())
    assert learnt(estimator) == 1


@pytest.mark.parametrize(
    "trial",
    [
        finished(state=TrialState.REJECTED),
        finished(state=TrialState.DUPLICATE),
        finished(state=TrialState.FAILED, measurement=None),
        finished(policy=Policy(student="resnet8")),
        with_context(timing={"ratio": 0.5, "disturbed": True}),
        with_context(timing=None),
        with_context(timing={"disturbed": False}),
        with_context(target={**WHERE, "table": {"machine": "a phone"}}),
        with_context(target={**WHERE, "runtime": "another"}),
    ],
    ids=[
        "rejected",
        "duplicate",
        "failed",
        "student",
        "disturbed",
        "untimed",
        "no ratio",
        "table",
        "runtime",
    ],
)
def test_what_teaches_nothing(trial: Trial) -> None:
    estimator = made()
    before = estimator.estimate(_POLICY)
    estimator.observe(trial)
    assert learnt(estimator) == 0
    assert estimator.estimate(_POLICY) == before


def test_without_a_latency_model_a_trial_is_no_error() -> None:
    estimator = Estimator(_INVENTORY, _SETTINGS, no_student, WHERE)
    estimator.observe(finished())
    assert "latency_ms" not in estimator.estimate(_POLICY)

"""A study of limited time: phases are planned on a clock, and end within it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from analytic import AnalyticEvaluator, make_space
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.limits import Durations
from autocompress.controller.loop import run_search
from autocompress.controller.phases import run_recovery, run_reference_policies, run_verify
from autocompress.controller.plain import PlainProposer
from autocompress.controller.protocols import Job, Outcome
from autocompress.controller.time_budget import (
    FINISH_SHARE,
    RECOVERY_SHARE,
    SLOWER,
    CascadePlan,
    TimeBudget,
    fit_recovery,
)
from autocompress.errors import InputError
from autocompress.execute.local import too_long
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy
from autocompress.policy.recovery import RecoveryConfig
from autocompress.results.answer import decide
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState

EPOCH_S = 7.0


@dataclass
class Hands:
    """An executor on a clock of its own: each evaluation takes as long as it is told to."""

    evaluator: AnalyticEvaluator
    seconds: Callable[[Job], float]
    now: float = 0.0
    waiting: list[Job] = field(default_factory=list)
    slots: int = 1

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def wait(self, timeout: float | None = None) -> Outcome | None:
        job = self.waiting.pop(0)
        spent = self.seconds(job)
        self.now += spent
        found = self.evaluator.evaluate(job.policy, job.phase, job.seed)
        return Outcome(job, found, seconds=spent)

    def close(self, *, cancel: bool = False) -> None:
        pass


class Trained(AnalyticEvaluator):
    """Knows how long an epoch takes."""

    def epoch_s(self, policy: Policy, seconds: float) -> float:
        return EPOCH_S


def study(total_s: float, trial_s: float, prepared_s: float, recovery: RecoveryConfig) -> Context:
    evaluator = Trained(6)

    def seconds(job: Job) -> float:
        thorough = 1.0 if job.phase == SEARCH else 1.8
        trained = job.phase.epochs if job.phase.kind == "recover" else 0.0
        return trial_s * thorough + trained * EPOCH_S

    hands = Hands(evaluator, seconds)
    share = RECOVERY_SHARE if recovery.epochs > 0 else FINISH_SHARE
    time = TimeBudget(total_s, lambda: hands.now, 0.0, recovery_share=share)
    hands.now = prepared_s
    return Context(
        make_space(6, bits=True),
        evaluator,
        hands,
        Budget("latency<=0.6x"),
        SearchConfig(sampler="random", trials=None, max_rejections=None),
        [],
        time=time,
    )


def all_phases(context: Context, recovery: RecoveryConfig) -> Trial | None:
    """Returns the answer."""
    run_search(context, PlainProposer(context, "random"))
    run_reference_policies(context)
    run_recovery(context, recovery)
    budget, base = Budget("latency<=0.6x"), context.evaluator.baseline
    return run_verify(
        context, lambda: decide(context.ledger.trials, base, context.objectives, budget, None, None)
    )


@settings(max_examples=15)
@given(
    st.floats(60, 1000),
    st.floats(2, 10),
    st.floats(0, 0.3),
    st.sampled_from([0.0, 1.0, 5.0, 80.0]),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_every_study_ends_in_time_and_its_answer_is_verified(
    total_s: float, trial_s: float, prepared: float, epochs: float, candidates: int, rungs: int
) -> None:
    recovery = RecoveryConfig(epochs=epochs, candidates=candidates, rungs=rungs)
    context = study(total_s, trial_s, prepared * total_s, recovery)
    answer = all_phases(context, recovery)
    hands = context.executor
    assert isinstance(hands, Hands)
    assert hands.now <= total_s + max(20.0, 0.05 * total_s)
    verified = {t.parent for t in context.ledger.trials if t.phase.kind == "verify"}
    if total_s - prepared * total_s > 15 * trial_s:
        assert answer is None or answer.number in verified
    # an unlimited count of trials: what time is left is less than what one more thing takes
    unused = total_s - hands.now
    assert unused <= 0.45 * total_s + 40 * trial_s + 20


def test_recovery_gets_its_share_and_the_rest_searches() -> None:
    recovery = RecoveryConfig(epochs=1000.0, candidates=1, compare_distillation=False)
    context = study(1000.0, 1.0, 100.0, recovery)
    all_phases(context, recovery)
    spent = {"search": 0.0, "recover": 0.0}
    for trial in context.ledger.trials:
        kind = trial.phase.kind
        if kind in spent and trial.origin not in ("uniform", "int8"):
            spent[kind] += trial.seconds
    # 900 s after preparation, less what verification and the end need
    assert spent["search"] == pytest.approx(430, abs=40)
    # planned as if it were a third slower
    assert spent["recover"] == pytest.approx(430 / SLOWER, abs=40)
    assert any("instead of 1 candidate for 1000 epochs" in note for note in context.time.notes)


def test_without_a_limit_nothing_is_left_out() -> None:
    time = TimeBudget()
    time.search_begins()
    assert time.fits("recover", Phase("recover", 1e6), Durations())
    assert time.search_s(5, Durations()) == float("inf")
    time.check_prepared("bank")
    assert time.as_dict()["left_out"] == {}


def test_a_time_that_is_over_before_the_first_trial_is_bad_input() -> None:
    now = [0.0]
    time = TimeBudget(30.0, lambda: now[0], 0.0)
    time.check_prepared("bank", 0.5)
    now[0] = 28.0
    with pytest.raises(InputError, match=r"bank, 50%.*at least 90 s"):
        time.check_prepared("bank", 0.5)


def test_once_the_search_began_nothing_is_called_preparation() -> None:
    now = [0.0]
    time = TimeBudget(30.0, lambda: now[0], 0.0)
    time.search_begins()
    now[0] = 29.0
    time.check_prepared("epoch 3 of 5", 0.6)


def test_a_repair_without_labels_is_begun_only_where_it_would_end() -> None:
    durations = Durations([made_trial(seconds=4.0)])
    now = [0.0]
    time = TimeBudget(200.0, lambda: now[0], 0.0, refine_s=100.0)
    finish = Phase("recover", 0.0, 1)
    assert time.fits("finish", finish, durations, refined=True)
    now[0] = 85.0  # 5 s to build, 10 to verify, 5 at the end, 5 for the uncompressed model on test
    assert time.fits("finish", finish, durations)
    assert not time.fits("finish", finish, durations, refined=True)
    assert time.left_out == {"finish": 1}


def test_a_cascade_needs_the_time_to_build_its_members_again() -> None:
    durations = Durations([made_trial(seconds=10.0)])
    now = [0.0]
    time = TimeBudget(460.0, lambda: now[0], 0.0)
    assert time.plan_cascade(20, durations) == CascadePlan()  # 250 s, two minutes, and the end
    now[0] = 155.0  # of 300 s 100 time it, 200 build 16 members
    assert time.plan_cascade(20, durations) == CascadePlan(16, False, 100.0)
    assert "16 of 20 trials" in time.notes[0]
    assert not time.left_out
    now[0] = 447.0
    assert time.plan_cascade(20, durations) is None
    assert time.left_out == {"cascade": 1}
    assert TimeBudget(None).plan_cascade(20, durations) == CascadePlan()


def test_a_search_leaves_time_for_a_cascade() -> None:
    durations = Durations([made_trial(seconds=10.0)])
    lefts = []
    for cascade in (False, True):
        time = TimeBudget(600.0, lambda: 0.0, 0.0, cascade=cascade)
        time.search_begins()
        lefts.append(time.search_s(0, durations))
    assert lefts[0] - lefts[1] == pytest.approx(0.75 * 90.0)  # of the rest, recovery gets a quarter


@pytest.mark.parametrize(
    ("prepared_s", "own_s", "named"),
    [(0.0, 10.0, "search.trial_timeout_s"), (80.0, 60.0, "--timeout")],
)
def test_what_is_given_up_names_the_limit_that_it_met(
    prepared_s: float, own_s: float, named: str
) -> None:
    """Its own, or what is left of the study's time."""
    context = study(100.0, 5.0, prepared_s, RecoveryConfig())
    context.config = context.config.model_copy(update={"trial_timeout_s": own_s})
    context.submit(Job(0, Policy(), SEARCH, 0))
    error = too_long(context.executor.waiting[0]).error
    assert named in error
    assert ("--timeout" in error) != ("trial_timeout_s" in error)


def made_trial(seconds: float) -> Trial:
    return Trial(0, Policy(), SEARCH, TrialState.COMPLETE, "test", seconds=seconds)


def needed(config: RecoveryConfig, epoch_s: float, build_s: float) -> float:
    """Each training counted one by one."""
    if config.epochs == 0:
        return 0.0
    spent = [config.epochs] * config.candidates
    if config.compare_distillation:
        spent.append(1.5 * config.epochs)
    epochs = config.epochs
    for _ in range(1, config.rungs):
        epochs *= 2
        spent += [epochs] * min(2, config.candidates)
    seconds = sum(e * epoch_s for e in spent)
    builds = config.candidates + (config.rungs - 1) * min(2, config.candidates)
    return seconds + build_s * (builds + config.compare_distillation)


@given(
    st.builds(
        RecoveryConfig,
        epochs=st.floats(0.1, 50),
        rungs=st.integers(1, 4),
        candidates=st.integers(1, 6),
        compare_distillation=st.booleans(),
    ),
    st.floats(0, 5000),
    st.floats(0.1, 100),
    st.floats(0, 60),
)
def test_what_is_fitted_fits_and_nothing_fitting_is_cut(
    asked: RecoveryConfig, seconds: float, epoch_s: float, build_s: float
) -> None:
    found = fit_recovery(asked, seconds, epoch_s, build_s)
    assert needed(found, epoch_s, build_s) <= seconds * (1 + 1e-9) or found.epochs == 0
    assert found.epochs <= asked.epochs
    if needed(asked, epoch_s, build_s) <= seconds * (1 - 1e-9):
        assert found == asked
    if found.epochs < asked.epochs:
        # not even one candidate could be trained to the end
        one = {"rungs": 1, "candidates": 1, "compare_distillation": False}
        whole = asked.model_copy(update=one)
        assert needed(whole, epoch_s, build_s) > seconds * (1 - 1e-9)

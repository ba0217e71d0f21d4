"""The one loop, driven by every proposer: what it never does, and how it ends."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import optuna
import pytest
from analytic import AnalyticEvaluator, make_space
from analytic_study import SAMPLERS, Kept, context, search

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import run_search
from autocompress.controller.protocols import Proposal, Proposer, Settled
from autocompress.controller.samplers import make_proposer
from autocompress.controller.stop import StopFlag
from autocompress.controller.unseen import Unseen
from autocompress.execute.local import InProcessExecutor
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy
from autocompress.policy.space import Assignment
from autocompress.results.front import ParetoFront, non_dominated
from autocompress.results.metric import Measurement
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("bits", [False, True])
def test_never_evaluates_twice_nor_over_the_budget(sampler: str, bits: bool) -> None:
    evaluator, sink = AnalyticEvaluator(5), Kept()
    ctx = context(evaluator, sampler, trials=40, sink=sink, bits=bits)
    result = search(ctx)
    digests = [digest for digest, _ in evaluator.evaluated]
    assert len(digests) == len(set(digests))
    assert sink.trials == result.trials
    assert [t.number for t in result.trials] == sorted({t.number for t in result.trials})
    limit = 0.6 * evaluator.baseline["latency_ms"]
    for trial in result.trials:
        estimate = evaluator.estimate(trial.policy)
        infeasible = estimate["latency_ms"] - 3 * estimate.spread["latency_ms"] > limit
        if trial.state is TrialState.COMPLETE:
            assert not infeasible
            assert trial.feasible == (evaluator._latency(trial.policy) <= limit)
        elif trial.state is TrialState.REJECTED:
            assert infeasible
            assert trial.policy.digest not in digests
            assert "latency_ms" in trial.reason
    assert result.stopped == "trials"
    assert len(digests) == 40


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_front_is_the_brute_force_front(sampler: str) -> None:
    ctx = context(AnalyticEvaluator(5), sampler)
    search(ctx)
    usable = [t for t in ctx.ledger.trials if t.feasible and t.measurement]
    points = [(-t.measurement["accuracy"], t.measurement["latency_ms"]) for t in usable]
    beaten = [any(p[0] <= q[0] and p[1] <= q[1] and p != q for p in points) for q in points]
    expected = {points[i] for i, b in enumerate(beaten) if not b}
    found = {(-t.measurement["accuracy"], t.measurement["latency_ms"]) for t in ctx.ledger.front()}
    assert found == expected
    assert sum(non_dominated(points)) == len(expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_makes_the_same_study(sampler: str) -> None:
    def study(seed: int) -> list[dict[str, object]]:
        ctx = context(AnalyticEvaluator(6), sampler, seed=seed)
        search(ctx)
        return [{**t.as_dict(), "seconds": 0} for t in ctx.ledger.trials]

    assert study(1) == study(1)
    assert study(1) != study(2)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("killed_after", [1, 9, 20])
def test_resume_repeats_nothing(sampler: str, killed_after: int) -> None:
    """Killed in the middle, what is on disk goes into the next session and is not done again."""
    first, sink = AnalyticEvaluator(6), Kept(killed_after)
    with pytest.raises(KeyboardInterrupt):
        search(context(first, sampler, trials=30, sink=sink))
    second = AnalyticEvaluator(6)
    ctx = context(second, sampler, trials=30, earlier=sink.trials)
    search(ctx)
    recorded = {t.policy.digest for t in sink.trials if t.state is TrialState.COMPLETE}
    assert recorded.isdisjoint(digest for digest, _ in second.evaluated)
    done = [t for t in ctx.ledger.trials if t.state is TrialState.COMPLETE]
    assert len(done) == 30
    assert len({t.number for t in ctx.ledger.trials}) == len(ctx.ledger.trials)


def test_the_clock_ends_a_study_with_a_front() -> None:
    ctx = context(AnalyticEvaluator(6, violent="hang", share=0.5), trials=None, timeout_s=1.0)
    result = search(ctx)
    assert result.stopped == "timeout"
    assert len(ctx.ledger.front()) > 0
    # what hung in evaluate and screen is not booked as the search's own time
    assert 0 <= result.bookkeeping_s <= result.seconds


def test_stop_finishes_the_running_trial_and_keeps_the_front() -> None:
    ctx = context(AnalyticEvaluator(6), trials=None)
    ctx.stop = StopFlag()
    ctx.progress = lambda p: ctx.stop.ask() if p.done == 7 else None
    result = search(ctx)
    assert result.stopped == "interrupted"
    assert sum(t.state is TrialState.COMPLETE for t in ctx.ledger.trials) == 7
    assert len(ctx.ledger.front()) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_space_that_is_used_up_ends_the_study_at_once(sampler: str) -> None:
    """Two choices of two levels: four policies, each evaluated once; then nobody is asked again."""
    evaluator = AnalyticEvaluator(2)
    config = SearchConfig(sampler=sampler, trials=50)
    ctx = Context(
        make_space(2, 2), evaluator, InProcessExecutor(evaluator), Budget(), config, [Kept()]
    )
    asked_after = []
    counted = Counted(make_proposer(ctx), lambda: asked_after.append(len(evaluator.evaluated)))
    assert run_search(ctx, counted).stopped == "exhausted"
    assert len(evaluator.evaluated) == 4
    assert max(asked_after) < 4
    again = context(evaluator, earlier=ctx.ledger.trials)
    again.space = ctx.space
    assert run_search(again, counted).stopped == "exhausted"
    assert len(evaluator.evaluated) == 4


class Counted:
    """Says when it is asked."""

    def __init__(self, inner: Proposer, say: Callable[[], None]) -> None:
        self.inner = inner
        self.say = say
        self.update = inner.update

    def suggest(self, n: int) -> list[Proposal]:
        self.say()
        return self.inner.suggest(n)


def test_policies_count_and_not_assignments() -> None:
    """Of 16 assignments, half only name another training, and a student has no layers to prune."""
    space = make_space(2, 2, distill=[False, True], students=["small"])
    unseen = Unseen(space, lambda policy: False, 0)
    found = []
    while (levels := unseen.draw()) is not None:
        found.append(space.decode(levels))
        unseen.remove(found[-1])
    assert unseen.none_left
    policies = {space.decode(a).untrained_digest for a in itertools.product(range(2), repeat=4)}
    assert len(found) == len(policies) == 5
    assert {p.untrained_digest for p in found} == policies


class Stuck(optuna.samplers.RandomSampler):
    """Proposes the same for ever, as TPE may once it is sure."""

    def sample_independent(self, study, trial, name, distribution):  # type: ignore[no-untyped-def]  # Optuna's
        return distribution.low


@pytest.mark.parametrize("layers", [3, 6])
def test_a_sampler_that_repeats_itself_gives_way_to_random_policies(layers: int) -> None:
    """Of 512 policies, which are counted, and of 262,144, which are not."""
    evaluator = AnalyticEvaluator(layers)
    ctx = context(evaluator, trials=12, budget="latency<=1x")
    result = run_search(ctx, make_proposer(ctx, Stuck()))
    assert result.stopped == "trials"
    assert len({digest for digest, _ in evaluator.evaluated}) == 12
    origins = [t.origin for t in ctx.ledger.trials if t.state is not TrialState.DUPLICATE]
    starts = sum(o not in ("Stuck", "random") for o in origins)
    assert origins[starts:] == ["Stuck", *["random"] * (11 - starts)]


def test_a_sampler_that_goes_on_repeating_itself_is_asked_less() -> None:
    """Of every answer that is new it gets its patience back."""
    asked: list[int] = []
    since = 0

    class Mostly:
        def suggest(self, n: int) -> list[Proposal]:
            nonlocal since
            since += 1
            new = len(asked) == 6  # the seventh policy is its own
            return [Proposal("mostly", (1, 2, 3, 4, 5, 6) if new else (0,) * 6)]

        def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
            nonlocal since
            if any(s.trial.state is TrialState.COMPLETE for s in completed):
                asked.append(since)
                since = 0

    ctx = context(AnalyticEvaluator(6), trials=10, budget="latency<=1x")
    run_search(ctx, Mostly())
    assert asked == [1, 20, 10, 5, 2, 1, 1, 20, 10, 5]


def test_a_proposal_that_comes_again_says_what_became_of_it() -> None:
    evaluator = AnalyticEvaluator(3)
    ctx = context(evaluator, trials=99)
    costly, cheap = (0, 0, 0), (7, 7, 7)
    script = iter([costly, cheap, costly, cheap])

    class Scripted:
        def suggest(self, n: int) -> list[Proposal]:
            return [Proposal("script", levels) for levels in itertools.islice(script, n)]

        def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
            pass

    run_search(ctx, Scripted())
    assert [str(t.state) for t in ctx.ledger.trials[:2]] == ["REJECTED", "COMPLETE"]
    again = next(t for t in ctx.ledger.trials if t.state is TrialState.DUPLICATE)
    assert (again.parent, again.reason) == (0, "rejected before")
    assert len(evaluator.evaluated) == 1


def test_a_full_disk_ends_a_search_and_is_no_trials_fault() -> None:
    sink = Kept()
    with pytest.raises(OSError, match="No space left on device: '/tmp/full'"):
        search(context(AnalyticEvaluator(5, violent="full"), "random", trials=40, sink=sink))
    assert not [t for t in sink.trials if t.state is TrialState.FAILED]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("violent", ["crash", "ours", "nan"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_hostile_evaluators_never_end_a_study(sampler: str, violent: str, share: float) -> None:
    evaluator = AnalyticEvaluator(6, violent=violent, share=share + 1e-9)
    ctx = context(evaluator, sampler, trials=24)
    result = search(ctx)
    assert result.stopped == "trials"
    failed = [t for t in ctx.ledger.trials if t.state is TrialState.FAILED]
    words = {"crash": "on purpose", "ours": "PolicyError", "nan": "must be a finite number"}
    assert failed
    assert all(words[violent] in t.reason and t.measurement is None for t in failed)
    assert bool(len(ctx.ledger.front())) == (share < 1)
    assert len(evaluator.evaluated) == len({d for d, _ in evaluator.evaluated})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_budget_that_nothing_meets_ends_cleanly(sampler: str) -> None:
    evaluator = AnalyticEvaluator(6)
    ctx = context(evaluator, sampler, trials=20, budget="latency<=0.05x", max_rejections=60)
    result = search(ctx)
    assert result.stopped == "rejections"
    assert not evaluator.evaluated
    assert not len(ctx.ledger.front())
    assert sum(t.state is TrialState.REJECTED for t in ctx.ledger.trials) == 60


def test_without_a_bound_on_rejections_time_ends_the_search() -> None:
    evaluator = AnalyticEvaluator(12)
    ctx = context(
        evaluator,
        "random",
        trials=None,
        budget="latency<=0.05x",
        max_rejections=None,
        timeout_s=1.0,
    )
    assert search(ctx).stopped == "timeout"
    assert sum(t.state is TrialState.REJECTED for t in ctx.ledger.trials) > 0
    assert not evaluator.evaluated


def test_trials_of_an_earlier_budget_are_told_to_the_proposer() -> None:
    ctx = context(AnalyticEvaluator(6), "tpe", trials=15)
    search(ctx)
    told: list[tuple[Assignment | None, Trial]] = []

    class Listener:
        def suggest(self, n: int) -> list[Proposal]:
            return []

        def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
            told.extend((one.assignment, one.trial) for one in completed)

    again = context(AnalyticEvaluator(6), "tpe", trials=99, earlier=ctx.ledger.trials)
    verified = replace(ctx.ledger.trials[0], number=500, phase=replace(SEARCH, kind="verify"))
    again.ledger.keep(verified)
    assert run_search(again, Listener()).stopped == "exhausted"
    assert [t.number for _, t in told] == [t.number for t in ctx.ledger.trials]
    assert all(again.space.decode(a).digest == t.policy.digest for a, t in told if a)


def test_several_workers_share_one_study() -> None:
    """More slots than one: proposals go out before the answers are in, none twice."""

    class Wide(InProcessExecutor):
        slots = 4

        def wait(self, timeout: float | None = None):  # type: ignore[no-untyped-def]  # its type is the parent's
            self._queue.reverse()  # the last one handed in is answered first
            return super().wait(timeout)

    for sampler in SAMPLERS:
        evaluator = AnalyticEvaluator(6)
        ctx = context(evaluator, sampler, trials=30)
        ctx.executor = Wide(evaluator)
        assert search(ctx).stopped == "trials"
        digests = [d for d, _ in evaluator.evaluated]
        assert len(digests) == len(set(digests)) == 30
        pairs = itertools.pairwise(sorted(t.number for t in ctx.ledger.trials))
        assert all(a < b for a, b in pairs)


def test_the_front_of_the_ledger_is_that_of_all_trials_at_any_time() -> None:
    """Searched, recovered and verified ones, of which some are over the budget after all."""
    draw, ctx = random.Random(0), context(AnalyticEvaluator(3), budget="latency<=0.7x")
    phases = [SEARCH, SEARCH, SEARCH, Phase("recover", 2.0), Phase("verify")]
    for number in range(200):
        policy = ctx.space.decode(tuple(draw.randrange(8) for _ in ctx.space.choices))
        found = ctx.evaluator.baseline
        cost = draw.uniform(1.0, found["latency_ms"])
        values = {**found.values, "accuracy": draw.random(), "latency_ms": cost}
        over = {"latency_ms": draw.choice((-0.1, -0.1, 0.1))}
        ctx.ledger.keep(
            Trial(
                number,
                policy,
                draw.choice(phases),
                draw.choice((TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAILED)),
                measurement=replace(found, values=values),
                violations=over,
            )
        )
        if draw.random() < 0.5:
            whole = ParetoFront.of(ctx.ledger.scored(), ctx.objectives)
            assert ctx.ledger.front().trials == whole.trials


def test_trials_stand_beside_the_latency_that_was_expected_before_they_taught_it() -> None:
    """An estimate that is made right by the first trial: only that one was expected elsewhere."""

    class Learning(AnalyticEvaluator):
        def estimate(self, policy: Policy) -> Measurement:
            found = super().estimate(policy)
            wrong = 1.0 if self.observed else 0.9
            values = {**found.values, "latency_ms": wrong * found["latency_ms"]}
            return Measurement(values, {"latency_ms": 0.05})

    ctx = context(Learning(4), trials=4)
    search(ctx)
    found = [t.measurement for t in ctx.ledger.trials if t.state is TrialState.COMPLETE]
    ratios = [m.context["expected"]["latency_ms"] / m["latency_ms"] for m in found if m]
    assert ratios == pytest.approx([0.9] + [1.0] * (len(ratios) - 1))
    assert len(ratios) > 1
    assert all(m.context["expected"]["sigma_ms"] == 0.05 for m in found if m)

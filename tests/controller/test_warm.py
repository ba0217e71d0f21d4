"""Searches that begin with what an earlier one on the same architecture found."""

from __future__ import annotations

import random

import numpy as np
import pytest
from analytic import AnalyticEvaluator
from analytic_study import context, search
from scipy.stats import spearmanr

from autocompress.controller.context import Context
from autocompress.controller.guided.proposer import GuidedProposer
from autocompress.controller.warm import WarmStart
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.front import reference_point


def other_weights(seed: int) -> AnalyticEvaluator:
    """The same architecture: costs are the same, and layers hurt alike, but not the same."""
    found, draw = AnalyticEvaluator(9, seed), random.Random(100 + seed)
    found.hurt = [hurt * 2 ** draw.gauss(0.0, 0.5) for hurt in found.hurt]
    return found


def taken_over(ctx: Context) -> WarmStart:
    """What a run leaves to later ones."""
    front = tuple(trial.policy.untrained for trial in ctx.ledger.front())
    return WarmStart(front, {policy: found.kl for (policy, _), found in ctx.screener.known.items()})


def with_warm(ctx: Context, warm: WarmStart) -> Context:
    ctx.warm = warm
    return ctx


def test_the_first_trials_find_more() -> None:
    """Seven problems, four trials each, warm and cold with the same seeds.

    Were warm starts of no use, they would be ahead in all seven by chance once in 2**7 = 128 runs;
    the seeds are fixed, so that the outcome is the same at every run.
    """
    ahead = 0
    for seed in range(7):
        earlier = context(AnalyticEvaluator(9, seed), trials=40, seed=seed)
        search(earlier)
        volumes = []
        for warm in (taken_over(earlier), WarmStart()):
            ctx = with_warm(context(other_weights(seed), trials=4, seed=seed), warm)
            search(ctx)
            reference = reference_point(ctx.evaluator.baseline, ctx.objectives)
            volumes.append(ctx.ledger.front().hypervolume(reference))
        ahead += volumes[0] > volumes[1]
    assert ahead == 7


def test_probes_that_no_time_is_left_for_are_those_of_the_earlier_run() -> None:
    earlier = context(AnalyticEvaluator(9, 0), trials=10)
    search(earlier)
    warm, evaluator = taken_over(earlier), AnalyticEvaluator(9, 0)
    ctx = with_warm(context(other_weights(0)), warm)
    known = GuidedProposer(ctx).sensitivity
    known.probe(lambda: False)
    blind = GuidedProposer(context(other_weights(0))).sensitivity
    blind.probe(lambda: False)
    assert not known._seen
    hardest = [float(loss[-1]) for loss in known.losses[:9]]
    told = [5.0 * hurt * 0.875**2 for hurt in evaluator.hurt]
    assert spearmanr(hardest, told).statistic == pytest.approx(1.0)
    assert np.ptp([loss[-1] for loss in blind.losses[:9]]) == 0


def test_policies_of_the_earlier_front_are_the_first_trials() -> None:
    earlier = context(AnalyticEvaluator(9, 0), trials=30)
    search(earlier)
    warm = taken_over(earlier)
    for sampler in ("guided", "tpe"):
        ctx = with_warm(context(other_weights(0), sampler, trials=3), warm)
        search(ctx)
        assert [trial.origin for trial in ctx.ledger.trials[:3]] == ["warm"] * 3
        costs = [ctx.evaluator.estimate(t.policy)["latency_ms"] for t in ctx.ledger.trials[:3]]
        assert costs == sorted(costs, reverse=True)
        kept = [ctx.evaluator.estimate(policy)["latency_ms"] for policy in warm.policies]
        assert [costs[0], costs[-1]] == [max(kept), min(kept)]
        assert {t.policy.digest for t in ctx.ledger.trials[:3]} <= {p.digest for p in warm.policies}


def test_policies_that_the_space_does_not_have_are_left_out() -> None:
    ctx = context(AnalyticEvaluator(4), trials=1)
    known = Policy({"l1": LayerPolicy(prune_ratio=0.25)})
    foreign = Policy({"l1": LayerPolicy(prune_ratio=0.3)})
    elsewhere = Policy({"nowhere": LayerPolicy(prune_ratio=0.25)})
    warm = WarmStart((foreign, known, elsewhere))
    assert warm.assignments(ctx.space) == [ctx.space.encode(known)]
    assert warm.divergence(ctx.space, ctx.space.mildest) is None

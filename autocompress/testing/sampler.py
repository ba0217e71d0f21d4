"""What every sampler must do: a pytest class that the author of a sampler derives from.

class TestMine(SamplerContract):
    def make(self, context):
        return MySampler(context)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import SearchResult, run_search
from autocompress.controller.protocols import Job, Proposal, Proposer, Settled
from autocompress.execute.local import InProcessExecutor, evaluate
from autocompress.policy.budget import Budget
from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
from autocompress.policy.policy import Policy
from autocompress.policy.space import Assignment, Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.results.metric import Measurement
from autocompress.results.screened import Screened
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState


def chain_space(layers: int, levels: int, students: Sequence[str] = ()) -> Space:
    """A chain of prunable layers, up to 8 levels each, and perhaps other architectures."""
    names = [f"l{i}" for i in range(layers)]
    specs = [LayerSpec(n, "conv", 16, 16, (3, 3), (1, 1), out_group=n) for n in names]
    specs.append(LayerSpec("head", "linear", 16, 10))
    readers = [*names[1:], "head"]
    groups = [ChannelGroup(n, (n,), (r,), 16) for n, r in zip(names, readers, strict=True)]
    inventory = Inventory(tuple(specs), tuple(groups), ((3, 8, 8),), "architecture", "weights")
    rules = [{"prune_ratio": [level / 8 for level in range(levels)]}]
    return SpaceConfig.read({"rules": rules, "students": list(students)}).bind(inventory)


@dataclass
class ChainEvaluator:
    """Accuracy falls with the square of what is removed, latency with what is removed.

    Args:
        layers: of ``chain_space``.
        failing: one policy in so many fails, by digest; 0 for none.
        students_fail: students fail; otherwise they are quick and guess.
    """

    layers: int
    failing: int = 0
    students_fail: bool = False

    def _measured(self, policy: Policy, accuracy: float) -> Measurement:
        kept = [1.0 - policy[f"l{i}"].prune_ratio for i in range(self.layers)]
        work = sum(k * (1 + i % 3) for i, k in enumerate(kept))
        work = 0.1 if policy.student else work
        values = {"latency_ms": 0.2 + work, "macs": 1e3 * work, "size_bytes": 4e3 * work}
        return Measurement(
            {"accuracy": accuracy, **values}, {"accuracy": 0.002, "latency_ms": 0.01}
        )

    def _loss(self, policy: Policy) -> float:
        return sum(
            0.03 * (1 + i % 2) * policy[f"l{i}"].prune_ratio ** 2 for i in range(self.layers)
        )

    @property
    def baseline(self) -> Measurement:
        """The uncompressed model."""
        return self._measured(Policy(), 0.9)

    def estimate(self, policy: Policy) -> Measurement:
        """Costs, without an error."""
        values = self._measured(policy, 0.0).values
        return Measurement({n: v for n, v in values.items() if n != "accuracy"})

    def screen(self, policy: Policy, images: int) -> Screened:
        """A divergence that grows with the loss."""
        return Screened(5.0 * self._loss(policy), 0.01, images)

    def observe(self, trial: Trial) -> None:
        """Nothing to learn: the estimate is exact."""

    def evaluate(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Measurement:
        """The closed form, or a failure."""
        if policy.student and self.students_fail:
            raise RuntimeError("a student that fails on purpose")
        if self.failing and int(policy.untrained_digest[:8], 16) % self.failing == 0:
            raise RuntimeError("a failure on purpose")
        return self._measured(policy, 0.1 if policy.student else 0.9 - self._loss(policy))


def chain_study(
    evaluator: ChainEvaluator,
    *,
    levels: int = 6,
    trials: int = 12,
    seed: int = 0,
    students: Sequence[str] = (),
    earlier: Sequence[Trial] = (),
) -> Context:
    """A study on the chain, at 0.7 of its latency."""
    return Context(
        chain_space(evaluator.layers, levels, students),
        evaluator,
        InProcessExecutor(evaluator),
        Budget("latency<=0.7x"),
        SearchConfig(trials=trials, seed=seed),
        [],
        list(earlier),
    )


def settled(context: Context, proposals: Sequence[Proposal]) -> list[Settled]:
    """What comes of proposals: each is evaluated, rejected by estimate, or a duplicate."""
    found = []
    for one in proposals:
        policy = context.space.decode(one.assignment)
        over = context.feasibility.infeasible_by_estimate(context.estimate(one.assignment))
        if context.ledger.known(policy) is not None:
            trial = Trial(-1, policy, SEARCH, TrialState.DUPLICATE, one.origin)
        elif over is not None:
            number, estimate = context.ledger.number(), context.estimate(one.assignment)
            state = TrialState.REJECTED
            trial = context.ledger.keep(
                Trial(number, policy, SEARCH, state, one.origin, estimate, over)
            )
        else:
            job = Job(context.ledger.number(), policy, SEARCH, 0, one.origin)
            trial = context.end(evaluate(context.evaluator, job))
        found.append(Settled(one.assignment, trial))
    return found


class SamplerContract:
    """Derive from it and give ``make``; pytest runs every test on your sampler."""

    steps = 14
    """Proposals that most tests drive a sampler through."""

    def make(self, context: Context) -> Proposer:
        """The sampler under test."""
        raise NotImplementedError

    def drive(self, context: Context, *, steps: int = 0, at_once: int = 1) -> list[Assignment]:
        """What a sampler proposes, each answered before the next."""
        proposer, found = self.make(context), []
        for _ in range(steps or self.steps):
            proposals = proposer.suggest(at_once)
            found += [p.assignment for p in proposals]
            proposer.update(settled(context, proposals), [])
        return found

    def search(self, context: Context) -> SearchResult:
        """The search phase of a study with this sampler."""
        return run_search(context, self.make(context))

    def test_proposals_lie_in_the_space(self) -> None:
        context = chain_study(ChainEvaluator(4))
        proposer = self.make(context)
        for step in range(self.steps):
            wanted = 1 + step % 3
            proposals = proposer.suggest(wanted)
            assert 1 <= len(proposals) <= wanted
            for one in proposals:
                assert one.origin, "a proposal says where it comes from"
                assert len(one.assignment) == len(context.space.choices)
                for level, choice in zip(one.assignment, context.space.choices, strict=True):
                    assert 0 <= level < len(choice.levels), choice.name
            proposer.update(settled(context, proposals), [])

    def test_the_same_seed_proposes_the_same(self) -> None:
        first, second = (self.drive(chain_study(ChainEvaluator(4), seed=3)) for _ in range(2))
        assert first == second

    def test_the_order_within_an_update_does_not_matter(self) -> None:
        found = []
        for turn in (1, -1):
            context = chain_study(ChainEvaluator(4))
            proposer = self.make(context)
            for _ in range(5):
                done = settled(context, proposer.suggest(4))
                proposer.update(done[::turn], [])
            found.append([p.assignment for p in proposer.suggest(4)])
        assert found[0] == found[1]

    def test_every_ending_is_taken(self) -> None:
        """Complete, rejected, failed, duplicate, interrupted; proposed by others; outside."""
        context = chain_study(ChainEvaluator(4, failing=2))
        proposer = self.make(context)
        others = [Proposal("other", (level,) * 4) for level in range(6)]
        proposer.update(settled(context, others), [])
        outside = Trial(context.ledger.number(), Policy(), measurement=context.evaluator.baseline)
        proposer.update([Settled(None, context.ledger.keep(outside))], [])
        for _ in range(self.steps):
            proposals = proposer.suggest(2)
            done = settled(context, proposals[:1])
            twice = [replace(s, trial=replace(s.trial, number=-1)) for s in done]
            again = [replace(s, trial=replace(s.trial, state=TrialState.DUPLICATE)) for s in twice]
            # nothing is heard of a second proposal, as when a study is stopped
            proposer.update(done, [])
            proposer.update(again, [])
        assert proposer.suggest(1)

    def test_it_proposes_while_others_are_evaluated(self) -> None:
        context = chain_study(ChainEvaluator(4))
        proposer, active = self.make(context), list[Proposal]()
        for _ in range(self.steps):
            active += proposer.suggest(3 - len(active))
            assert len(active) == 3
            last = active.pop()
            proposer.update(settled(context, [last]), active)

    def test_a_space_that_is_used_up_ends_the_search(self) -> None:
        context = chain_study(ChainEvaluator(2), levels=2, trials=50)
        assert self.search(context).stopped == "exhausted"
        tried = [t for t in context.ledger.trials if t.state is not TrialState.DUPLICATE]
        assert len({t.policy.digest for t in tried}) == len(tried) == 4

    def test_nothing_is_evaluated_twice_and_all_trials_are_used(self) -> None:
        context = chain_study(ChainEvaluator(4, failing=4), trials=20)
        assert self.search(context).stopped == "trials"
        done = (TrialState.COMPLETE, TrialState.FAILED)
        evaluated = [t.policy.digest for t in context.ledger.trials if t.state in done]
        assert len(evaluated) == len(set(evaluated)) == 20

    def test_it_goes_on_from_an_earlier_session(self) -> None:
        first = chain_study(ChainEvaluator(4), trials=8)
        self.search(first)
        again = chain_study(ChainEvaluator(4), trials=16, earlier=first.ledger.trials)
        assert self.search(again).stopped == "trials"
        before = {t.policy.digest for t in first.ledger.trials if t.state is TrialState.COMPLETE}
        new = again.ledger.trials[len(first.ledger.trials) :]
        assert before.isdisjoint(
            t.policy.digest for t in new if t.state is not TrialState.DUPLICATE
        )

    def test_untrained_students_teach_nothing(self) -> None:
        """They guess until they are trained: what is proposed must not depend on that."""
        first, second = (
            self.drive(chain_study(ChainEvaluator(4, students_fail=fail), students=["small"]))
            for fail in (False, True)
        )
        assert first == second

"""The one loop: suggest, estimate, reject or submit, wait, record, update. Until told to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from autocompress.controller.context import Context
from autocompress.controller.protocols import Job, Proposal, Proposer, Settled
from autocompress.controller.unseen import Unseen
from autocompress.policy.policy import Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import SEARCH, Trial, TrialState

_REPEATS = 20
"""Proposals in a row that are settled already before a random unseen policy takes their place;
half as many each time that this happens again, until the proposer comes with something new."""

_ELSEWHERE_S = 60.0
"""How long a policy that another driver has claimed is left to it before it is asked for again."""

_SEED_STEP = 2_000_003
"""Between the study's seed and that of random unseen policies: others count up from the first."""

StopReason = Literal["trials", "timeout", "interrupted", "exhausted", "rejections", "device lost"]


@dataclass
class SearchResult:
    """What the search phase left.

    Args:
        trials: all finished ones, earlier sessions included.
        stopped: why it ended: ``trials``, ``timeout``, ``interrupted``, ``exhausted`` (nothing new
            to propose), ``rejections`` (``max_rejections`` in a row were over the budget); of a
            study also ``device lost``.
        seconds: of this session's search phase.
        bookkeeping_s: of them, spent on choosing and recording rather than on evaluating or
            screening.
    """

    trials: list[Trial]
    stopped: StopReason
    seconds: float
    bookkeeping_s: float


def run_search(context: Context, proposer: Proposer) -> SearchResult:
    """The search phase: proposals, one after another or several at once.

    Args:
        context: of the study; its trials of earlier sessions are told to the proposer first.
        proposer: chooses; see ``samplers.make_proposer``.
    """
    earlier = [
        Settled(context.space.encode(t.policy), t)
        for t in context.ledger.trials
        if t.phase == SEARCH
    ]
    if earlier:
        proposer.update(earlier, [])
    return _Loop(context, proposer).run()


class _Loop:
    def __init__(self, context: Context, proposer: Proposer) -> None:
        self.context = context
        self.proposer = proposer
        self.active: dict[int, Proposal] = {}
        self.submitted: set[str] = set()
        self.elsewhere: dict[str, float] = {}
        self.unseen = Unseen(context.space, self._settled, context.config.seed + _SEED_STEP)
        self.started = time.monotonic()
        context.search_ends = None
        if context.config.timeout_s is not None:
            context.search_ends = self.started + context.config.timeout_s
        context.time.search_begins()
        self.waited = 0.0
        self.screened_before = context.screener.seconds
        self.repeats = 0
        self.patience, self.gave_way = _REPEATS, False
        self.rejections = 0
        self.done = sum(
            t.phase == SEARCH and t.state in (TrialState.COMPLETE, TrialState.FAILED)
            for t in context.ledger.trials
        )

    def run(self) -> SearchResult:
        slots = self.context.executor.slots
        reason: StopReason | None = None
        while True:
            self._take_news()
            reason = reason or self._why_stop()
            while reason is None and len(self.active) < slots:
                reason = self._fill(slots - len(self.active)) or self._why_stop()
            if reason is not None and not self.active:
                break
            self._take_one()
        seconds = time.monotonic() - self.started
        elsewhere = self.waited + self.context.screener.seconds - self.screened_before
        return SearchResult(list(self.context.ledger.trials), reason, seconds, seconds - elsewhere)

    def _why_stop(self) -> StopReason | None:
        if self.context.stop:
            return "interrupted"
        if self._trials_left() == 0:
            return "trials"
        if self.context.seconds_left() == 0:
            return "timeout"
        return None

    def _trials_left(self) -> int | None:
        """Trials that may still be started."""
        trials = self.context.config.trials
        return None if trials is None else max(0, trials - self.done - len(self.active))

    def _too_many_rejections(self) -> bool:
        most = self.context.config.max_rejections
        return most is not None and self.rejections >= most

    def _settled(self, policy: Policy) -> bool:
        known = self.context.ledger.known(policy) is not None
        digest = policy.untrained_digest
        elsewhere = self.elsewhere.get(digest, 0.0) > time.monotonic()
        return known or elsewhere or digest in self.submitted

    def _fill(self, free: int) -> StopReason | None:
        """Submit what is new of the next proposals and may be within the budget.

        Args:
            free: how many more can be evaluated at once.

        Returns:
            Why there is nothing to go on with, or ``None``.
        """
        if self._too_many_rejections():
            return "rejections"
        left = self._trials_left()
        proposals = self._next(free if left is None else min(free, left))
        if not proposals:
            return "exhausted"
        settled = []
        for proposal in proposals:
            if self._why_stop() or self._too_many_rejections():
                break
            trial = self._judge(proposal)
            if trial is not None:
                settled.append(Settled(proposal.assignment, trial))
        if settled:
            self.proposer.update(settled, list(self.active.values()))
        return None

    def _next(self, count: int) -> list[Proposal]:
        """Proposals; one at random where the proposer only repeats itself; none at the end."""
        if self.unseen.none_left:
            return []
        self.gave_way = self.repeats >= self.patience
        if not self.gave_way:
            return self.proposer.suggest(count)
        levels = self.unseen.draw()
        return [] if levels is None else [Proposal("random", levels)]

    def _judge(self, proposal: Proposal) -> Trial | None:
        """Submit a proposal, or say in a trial why not."""
        policy = self.context.space.decode(proposal.assignment)
        if self._settled(policy):
            return self._repeat(proposal, policy)
        start = time.monotonic()
        estimate = self.context.evaluator.estimate(policy)
        self.waited += time.monotonic() - start
        violations = self.context.feasibility.infeasible_by_estimate(estimate)
        self.repeats = 0
        self.patience = max(1, self.patience // 2) if self.gave_way else _REPEATS
        self.unseen.remove(policy)
        if violations is not None:
            return self._reject(proposal, policy, estimate, violations)
        self.rejections = 0
        if not self.context.claim(policy, proposal.assignment):
            self.elsewhere[policy.untrained_digest] = time.monotonic() + _ELSEWHERE_S
            reason = "another driver evaluates it"
            return Trial(-1, policy, SEARCH, TrialState.DUPLICATE, proposal.origin, reason=reason)
        self._submit(proposal, policy)
        return None

    def _submit(self, proposal: Proposal, policy: Policy) -> None:
        number = self.context.ledger.number()
        self.active[number] = proposal
        self.submitted.add(policy.untrained_digest)
        start = time.monotonic()
        seed = self.context.config.seed
        self.context.submit(Job(number, policy, SEARCH, seed, proposal.origin))
        self.waited += time.monotonic() - start

    def _repeat(self, proposal: Proposal, policy: Policy) -> Trial:
        """A proposal that is settled already costs nothing; the first of a row is recorded."""
        before = self.context.ledger.known(policy)
        rejected = before is not None and before.state is TrialState.REJECTED
        trial = Trial(
            -1,
            policy,
            SEARCH,
            TrialState.DUPLICATE,
            proposal.origin,
            measurement=before.measurement if before else None,
            violations=before.violations if before else {},
            parent=before.number if before else None,
            reason="rejected before" if rejected else "evaluated before",
        )
        if self.repeats == 0:
            number = self.context.ledger.number()
            trial = self.context.ledger.keep(replace(trial, number=number))
        self.repeats += 1
        return trial

    def _reject(
        self,
        proposal: Proposal,
        policy: Policy,
        estimate: Measurement,
        violations: dict[str, float],
    ) -> Trial:
        worst = max(violations, key=lambda n: violations[n])
        self.rejections += 1
        return self.context.ledger.keep(
            Trial(
                self.context.ledger.number(),
                policy,
                SEARCH,
                TrialState.REJECTED,
                proposal.origin,
                estimate,
                violations,
                f"its estimated {worst} is {violations[worst]:.0%} over the "
                "budget even if the estimate errs in its favour",
            )
        )

    def _take_news(self) -> None:
        """What other drivers of the study have finished counts like trials of this one."""
        found = self.context.news()
        if not found:
            return
        self.done += len(found)
        for trial in found:
            self.unseen.remove(trial.policy)
        encode = self.context.space.encode
        settled = [Settled(encode(trial.policy), trial) for trial in found]
        self.proposer.update(settled, list(self.active.values()))

    def _take_one(self) -> None:
        start = time.monotonic()
        outcome = self.context.executor.wait(1.0)
        self.waited += time.monotonic() - start
        if outcome is None:
            return
        self.done += 1
        trial = self.context.end(outcome)
        assignment = self.active.pop(trial.number).assignment
        self.proposer.update([Settled(assignment, trial)], list(self.active.values()))
        trials, left = self.context.config.trials, self.context.seconds_left()
        self.context.report("search", self.done, trials, left, trial)

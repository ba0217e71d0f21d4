"""The selector: screens a handful of proposals and picks the one to evaluate."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial

from autocompress.controller.context import Context
from autocompress.controller.expected_improvement import QualityForecast, expected_improvement
from autocompress.controller.guided.costs import EstimatedCosts
from autocompress.controller.guided.history import History
from autocompress.controller.protocols import Proposal
from autocompress.controller.sensitivity import Sensitivity
from autocompress.policy.attempt import attempt
from autocompress.policy.space import Assignment

_NOT_SCREENED_KL = 1e3
"""Nats; stands for the divergence of a model that cannot be screened."""
_TOLD = 3
"""Policies that cannot be screened of which people are told; there may be hundreds."""


class Selector:
    """Picks by divergence, or by expected improvement.

    Args:
        context: of the study.
        costs, history: shared by the portfolio.
    """

    def __init__(self, context: Context, costs: EstimatedCosts, history: History) -> None:
        self.context = context
        self.costs = costs
        self.history = history
        self._failed = 0
        foretold = partial(context.warm.divergence, context.space)
        ahead = context.screener.ahead
        self.sensitivity = Sensitivity(context.space, self.divergence, ahead, foretold)

    def divergence(self, assignment: Assignment) -> float:
        """KL of an assignment in nats; a model that cannot be built or blows up comes last.

        Where nothing better is left it is evaluated all the same, and that trial says why it fails.
        """
        known = self.sensitivity.seen(assignment)
        if known is not None:
            return known
        policy = self.context.space.decode(assignment)
        level = logging.WARNING if self._failed < _TOLD else logging.DEBUG
        screen = partial(self.context.screener, assignment)
        found, reason = attempt(policy, "the screening", screen, level=level)
        self._failed += bool(reason)
        kl = found.kl if found is not None and math.isfinite(found.kl) else _NOT_SCREENED_KL
        self.sensitivity.observe(assignment, kl)
        return kl

    def pick(self, proposals: Sequence[Proposal], *, fill: bool) -> Proposal:
        """The proposal to evaluate, of those that are not infeasible by estimate if there are any.

        All are screened on the same images. A race with few images first does not pay: building a
        model costs as much as screening it.

        Args:
            proposals: at least one.
            fill: take the greatest expected improvement of the front, and where there is none the
                nearest to the budget; otherwise the least divergence, all being about as expensive.
        """
        # screening takes longer than all else here, and the others would be rejected after it
        judge = self.context.feasibility.infeasible_by_estimate
        possible = [p for p in proposals if not judge(self.context.estimate(p.assignment))]
        proposals = possible or proposals
        self.context.screener.ahead([p.assignment for p in proposals])
        found = [self.divergence(proposals[0].assignment)]
        for one in proposals[1:]:
            if not self.context.may_go_on:  # one that is known is better than many after the end
                break
            found.append(self.divergence(one.assignment))
        proposals = proposals[: len(found)]
        gains = self._gains(proposals, found) if fill else [(0.0, 0.0)] * len(found)
        ranks = [(-gain, over, kl) for (gain, over), kl in zip(gains, found, strict=True)]
        return proposals[ranks.index(min(ranks))]

    def _gains(
        self, proposals: Sequence[Proposal], divergences: Sequence[float]
    ) -> list[tuple[float, float]]:
        """Expected improvement by each proposal, and the share by which it is over the bounds."""
        base = self.context.feasibility.baseline
        seen = [
            (self.divergence(self.history.assignment(t)), t.measurement.score)
            for t in self.history.complete()
            if t.measurement
        ]
        forecast = QualityForecast(seen, base.score, base.score_error, base.quality.goal)
        front, reference = self.history.front(), self.history.reference()
        bounds = self.costs.bounds()
        gains = []
        for proposal, kl in zip(proposals, divergences, strict=True):
            costs = self._corrected(proposal)
            over = max([0.0, *(costs.get(n, 0.0) / b - 1.0 for n, b in bounds.items())])
            gain = 0.0
            if not over and all(m.name in costs for m in front.objectives[1:]):
                quality = forecast(kl)
                gain = expected_improvement(front, reference, quality, forecast.sigma, costs)
            gains.append((gain, over))
        return gains

    def _corrected(self, proposal: Proposal) -> dict[str, float]:
        """Estimated costs, corrected by how far the parent's estimate was off."""
        own = dict(self.costs(proposal.assignment))
        parent = None if proposal.parent is None else self.history.trials[proposal.parent]
        if parent is None or parent.measurement is None:
            return own
        before = self.costs(self.history.assignment(parent))
        return {
            name: value * parent.measurement[name] / before[name]
            if before[name] > 0 and name in parent.measurement
            else value
            for name, value in own.items()
        }

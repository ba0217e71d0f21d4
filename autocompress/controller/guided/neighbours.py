"""Variations of the answer, or of front members: level switches, and the solver under noise."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from autocompress.controller.context import Context
from autocompress.controller.guided.costs import EstimatedCosts
from autocompress.controller.guided.history import History
from autocompress.controller.guided.methods import Round
from autocompress.controller.protocols import Proposal
from autocompress.controller.sensitivity import Sensitivity
from autocompress.controller.solver import solve
from autocompress.policy.space import Assignment
from autocompress.results.answer import best_of
from autocompress.results.trial import Trial


class Neighbours(ABC):
    """Proposes policies near the answer, or near some front member.

    Args:
        context: of the study.
        costs, history, sensitivity: shared by the portfolio.
        draw: of everything random.

    Attributes:
        origin: of the proposals.
    """

    origin: ClassVar[str]

    def __init__(
        self,
        context: Context,
        costs: EstimatedCosts,
        history: History,
        sensitivity: Sensitivity,
        draw: random.Random,
    ) -> None:
        self.context = context
        self.costs = costs
        self.history = history
        self.sensitivity = sensitivity
        self.random = draw

    def suggest(self, n: int, now: Round) -> list[Proposal]:
        """Variations, each of the answer or of a member of its own; none before any trial."""
        parents = [now.answer or self._parent(now.front) for _ in range(n)]
        return [
            Proposal(self.origin, self._varied(p, self._target(p, now.front)), p.number)
            for p in parents
            if p is not None
        ]

    @abstractmethod
    def _varied(self, parent: Trial, target: float) -> Assignment:
        """Near a trial's assignment, at about some cost."""

    def _parent(self, front: Sequence[Trial]) -> Trial | None:
        """Some front member that counts; without a front, the nearest to the budget."""
        if front:
            floor = self.history.reference()[0]
            better = self.context.objectives[0].better
            counting = [t for t in front if t.measurement and better(t.measurement.score, floor)]
            return self.random.choice(counting or list(front))
        done = self.history.members(self.context.ledger.scored())
        return best_of(done, self.context.objectives)

    def _target(self, parent: Trial, front: Sequence[Trial]) -> float:
        """A cost between a front member's and that of its cheaper neighbour, to fill the gap.

        For the answer it is all that the budget leaves.
        """
        own = self.costs.main(self.history.assignment(parent))
        place = next((i for i, t in enumerate(front) if t.number == parent.number), 0)
        if front and parent.number == front[-1].number and self.history.loses(parent):
            return max(own, self._bound_beside(parent))
        if place == 0:
            return own
        below = self.costs.main(self.history.assignment(front[place - 1]))
        return own - self.random.random() * max(0.0, own - below)

    def _bound(self) -> float:
        return self.context.feasibility.bounds(self.context.cost).get(self.context.cost, math.inf)

    def _bound_beside(self, parent: Trial) -> float:
        """The bound in terms of this proposer's costs, for policies near a measured one.

        Neighbours are off by about as much as their parent: that much is known from measuring it.
        Half a standard deviation is left for what is not shared.
        """
        cost, found = self.context.cost, parent.measurement
        if found is None or not found.get(cost):
            return self._bound()
        levels = self.history.assignment(parent)
        estimate = self.context.estimate(levels)
        rest = 1.0 + 0.5 * estimate.spread.get(cost, 0.0) / estimate[cost]
        return self._bound() * self.costs.main(levels) / (found[cost] * rest)


class Switch(Neighbours):
    """Hardens one choice and softens one or two others as long as the cost is about the target.

    Where hardening saves too little for that, nothing is softened.
    """

    origin = "switch"

    def _varied(self, parent: Trial, target: float) -> Assignment:
        choices = self.context.space.choices
        levels = list(self.history.assignment(parent))
        order = [i for i, c in enumerate(choices) if c.of_layers]
        self.random.shuffle(order)
        hardened = False
        softened = 0
        limit = max(target, min(1.01 * target, self._bound()))
        for i in order:
            top = len(choices[i].levels) - 1
            if not hardened and levels[i] < top:
                levels[i] = min(top, levels[i] + self.random.choice((1, 1, 2)))
                hardened = True
            elif hardened and levels[i] > 0 and softened < 2:
                before = levels[i]
                levels[i] = max(0, levels[i] - self.random.choice((1, 1, 2)))
                if self.costs.main(tuple(levels)) > limit:
                    levels[i] = before
                else:
                    softened += 1
            if hardened and softened == 2:
                break
        return tuple(levels)


class Jitter(Neighbours):
    """The solver's answer at a cost, under sensitivities drawn around the fit."""

    origin = "jitter"

    def _varied(self, parent: Trial, target: float) -> Assignment:
        levels = self.history.assignment(parent)
        noise = self.random.gauss
        losses = [table * 2.0 ** noise(0.0, 0.7) for table in self.sensitivity.losses]
        bounds = self.costs.bounds()
        found = solve(
            self.context.space,
            losses,
            self.costs,
            {**bounds, self.context.cost: target * 1.001},
            start=levels,
            rounds=2,
            polish=False,
            marginals=self.costs.marginals,
            order=self.sensitivity.order,
            seconds=self.costs.solving_s / 2,
        )
        return found or levels

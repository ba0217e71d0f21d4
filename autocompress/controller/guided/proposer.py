"""The guided search: seeds, an exact solver, level switches on the front, and Optuna's TPE.

A portfolio of methods and a selector. Seeds and the solver's ladder become trials as they are.
After that every proposal is checked against the budget by the cost estimate and screened by its KL
divergence to the uncompressed outputs; only the best of a handful becomes a trial. Every other
round works on the answer, the most expensive policy within the budget, as long as it loses
quality; the others go where the front gains most.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from autocompress.controller.context import Context
from autocompress.controller.guided.costs import EstimatedCosts
from autocompress.controller.guided.history import History
from autocompress.controller.guided.ladder import SolverLadder
from autocompress.controller.guided.neighbours import Neighbours
from autocompress.controller.guided.selector import Selector
from autocompress.controller.optuna_study import OptunaController
from autocompress.controller.protocols import Proposal, Settled
from autocompress.controller.seeds import leading_seeds
from autocompress.policy.space import Assignment


class GuidedProposer:
    """Proposes what is expected to improve the front, or the answer, most; see the module.

    Args:
        context: of the study.
    """

    def __init__(self, context: Context) -> None:
        config = context.config
        self.context = context
        self.costs = EstimatedCosts(context)
        self.history = History(context)
        self.selector = Selector(context, self.costs, self.history)
        self.sensitivity = self.selector.sensitivity
        self.optuna = OptunaController(
            context.space,
            context.objectives,
            "tpe",
            config.seed,
            baseline=context.feasibility.baseline,
        )
        shared = context, self.costs, self.history, self.sensitivity
        self.ladder = SolverLadder(*shared)
        self.neighbours = Neighbours(*shared, self.optuna, random.Random(config.seed))
        self.seeds = deque(leading_seeds(context) if config.seeds else [])
        self.rounds = 0
        self._under_way: set[str] = set()

    def suggest(self, n: int) -> list[Proposal]:
        """Seeds, then the solver's ladder, then the best of a handful for each one asked for."""
        found = [Proposal(*self.seeds.popleft()) for _ in range(min(n, len(self.seeds)))]
        if len(found) < n:
            found += self.ladder.suggest(n - len(found))
        self._under_way |= {self._digest(p.assignment) for p in found}
        while len(found) < n:
            found.append(self._best_of_a_handful())
            self._under_way.add(self._digest(found[-1].assignment))
        return found

    def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
        """Remember where trials came from; Optuna hears of every one."""
        for one in sorted(completed, key=lambda s: s.trial.number):
            if one.assignment is not None and one.trial.number >= 0:
                self.history.add(one)
                self.costs.forget_if_moved(one.assignment)
            self.optuna.tell(one.assignment, one.trial)
        self._under_way = {self._digest(p.assignment) for p in active}

    def _best_of_a_handful(self) -> Proposal:
        """The selector's choice from a refitted ladder, or from variations of front members."""
        self.rounds += 1
        front = self.history.members(self.history.front())
        most_expensive = front[-1] if front and self.rounds % 2 else None
        answer = most_expensive if most_expensive and self.history.loses(most_expensive) else None
        proposals = self.ladder.refitted(self.rounds)
        proposals = proposals or self.neighbours.around(answer, front, self._known)
        if not proposals:
            return Proposal("tpe", self.optuna.candidate())
        return self.selector.pick(proposals, fill=answer is None)

    def _digest(self, assignment: Assignment) -> str:
        return self.context.space.decode(assignment).untrained_digest

    def _known(self, assignment: Assignment) -> bool:
        policy = self.context.space.decode(assignment)
        known = self.context.ledger.known(policy) is not None
        return known or policy.untrained_digest in self._under_way

"""The guided search: starting policies, a solver, level switches on the front, and Optuna's TPE.

A portfolio of methods (``methods.py``) and a selector. Starting policies and the solver's ladder
become trials as they are.
After that every proposal is checked against the budget by the cost estimate and screened by its KL
divergence to the uncompressed outputs; only the best of a handful becomes a trial. Every other
round works on the answer, the most expensive policy within the budget, as long as it loses
quality; the others go where the front gains most.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from autocompress.controller.context import Context
from autocompress.controller.guided.costs import EstimatedCosts
from autocompress.controller.guided.history import History
from autocompress.controller.guided.ladder import RUNGS, Refit, SolverLadder
from autocompress.controller.guided.methods import Candidates, Method, Round, Starts
from autocompress.controller.guided.neighbours import Jitter, Switch
from autocompress.controller.guided.selector import Selector
from autocompress.controller.optuna_study import OptunaController
from autocompress.controller.protocols import Proposal, Settled
from autocompress.controller.starts import leading_starts, warm_starts
from autocompress.policy.space import Assignment

_SHARES = {"switch": 0.6, "jitter": 0.3, "tpe": 0.1}
"""Of the proposals of a round, by the method that makes them."""

_TRIES = 40
"""Proposals drawn for each one that is asked for, before fewer have to do."""


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
        self.random = random.Random(config.seed)
        self.starts = Starts(leading_starts(context) if config.starts else warm_starts(context))
        self.ladder = SolverLadder(*shared)
        self.refit = Refit(self.ladder)
        self.varying: dict[str, Method] = {
            "switch": Switch(*shared, self.random),
            "jitter": Jitter(*shared, self.random),
            "tpe": Candidates(self.optuna),
        }
        self.rounds = 0
        self._under_way: dict[Assignment, str] = {}

    def suggest(self, n: int) -> list[Proposal]:
        """Starting policies, then the ladder, then the best of a handful for each one asked for."""
        found: list[Proposal] = []
        first: tuple[Method, ...] = (self.starts, self.ladder)
        for method in first:
            if len(found) < n:
                found += method.suggest(n - len(found), Round())
        self._under_way |= {p.assignment: self._digest(p.assignment) for p in found}
        while len(found) < n:
            found.append(self._best_of_a_handful())
            latest = found[-1].assignment
            self._under_way[latest] = self._digest(latest)
        return found

    def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
        """Remember where trials came from; Optuna hears of every one."""
        for one in sorted(completed, key=lambda s: s.trial.number):
            if one.assignment is not None and one.trial.number >= 0:
                self.history.add(one)
                self.costs.forget_if_moved(one.assignment)
            self.optuna.tell(one.assignment, one.trial)
        # there may be a thousand, of which all but a few were under way before
        known = self._under_way
        under_way = [p.assignment for p in active]
        self._under_way = {a: known.get(a) or self._digest(a) for a in under_way}

    def _best_of_a_handful(self) -> Proposal:
        """The selector's choice from a refitted ladder, or from what the varying methods find."""
        self.rounds += 1
        front = self.history.members(self.history.front())
        most_expensive = front[-1] if front and self.rounds % 2 else None
        answer = most_expensive if most_expensive and self.history.loses(most_expensive) else None
        now = Round(self.rounds, front, answer)
        proposals = self.refit.suggest(len(RUNGS), now) or self._handful(now)
        if not proposals:
            return self.varying["tpe"].suggest(1, now)[0]
        return self.selector.pick(proposals, fill=answer is None)

    def _handful(self, now: Round) -> list[Proposal]:
        """New proposals of the methods by their shares; fewer where solving takes long."""
        wanted, begin = self.context.config.candidates, time.monotonic()
        names, shares = [*_SHARES], [*_SHARES.values()]
        found: dict[Assignment, Proposal] = {}
        for name in self.random.choices(names, shares, k=_TRIES * wanted):
            if len(found) >= wanted or time.monotonic() - begin > self.costs.solving_s:
                break
            for one in self.varying[name].suggest(1, now):
                if one.assignment not in found and not self._known(one.assignment):
                    found[one.assignment] = one
        return list(found.values())

    def _digest(self, assignment: Assignment) -> str:
        return self.context.space.decode(assignment).untrained_digest

    def _known(self, assignment: Assignment) -> bool:
        policy = self.context.space.decode(assignment)
        known = self.context.ledger.known(policy) is not None
        return known or policy.untrained_digest in self._under_way.values()

"""The guided search: seeds, an exact solver, level switches on the front, and Optuna's TPE.

Every proposal is checked against the budget by the cost estimate and screened by its KL
divergence to the uncompressed outputs; only the best of a handful becomes a trial. Trials aim at
cost bands in turn, so that the whole front is filled and not one corner.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence

from autocompress.policy.space import Assignment
from autocompress.results.trial import SEARCH, Trial, TrialState
from autocompress.search.controller import OptunaController
from autocompress.search.loop import Context
from autocompress.search.seeds import ladders
from autocompress.search.sensitivity import Sensitivity
from autocompress.search.solver import Tables, solve

_RUNGS = (0.97, 0.85, 0.7, 0.55)
"""Cost targets of the solver, as shares of the way from the cheapest policy to the bound."""

_LEADING_SEEDS = 3
_HOPELESS_KL = 1e3
"""Stands for the divergence of a model that cannot be screened."""


class GuidedProposer:
    """Proposes what promises most; see the module.

    Args:
        context: of the study.
    """

    def __init__(self, context: Context) -> None:
        config = context.config
        self.context = context
        self.space = context.space
        self.random = random.Random(config.seed)
        self.optuna = OptunaController(context.space, context.objectives, "tpe", config.seed)
        self.sensitivity = Sensitivity(context.space, self._probe)
        self.assignments: dict[int, Assignment] = {}
        self.solved: deque[tuple[str, Assignment]] = deque()
        self.rounds = 0
        self._known_costs: dict[Assignment, Mapping[str, float]] = {}
        self._tables: Tables = {}
        self.cost = config.objectives[1] if len(config.objectives) > 1 else "macs"
        self.seeds = deque(self._leading_seeds() if config.seeds else [])

    def _leading_seeds(self) -> list[tuple[str, Assignment]]:
        """int8, the mildest uniform policies of each ladder within the budget, and the students.

        The rest of the ladders are what the solver does better; the baselines of the study still
        show the best uniform policy.
        """
        found = list(ladders(self.space))
        int8 = [s for s in found if s[0] == "int8"][:1]
        fitting = [s for s in found if s[0] == "uniform" and self._likely(s[1])]
        fitting.sort(key=lambda s: -self._costs(s[1])[self._cost_name()])
        students = [s for s in found if s[0] == "student" and self._likely(s[1])]
        return [*int8, *fitting[:_LEADING_SEEDS], *students]

    def _cost_name(self) -> str:
        names = self.context.config.objectives
        return names[1] if len(names) > 1 else "macs"

    def propose(self, trials: Sequence[Trial]) -> tuple[str, Assignment] | None:
        """The next seed, solver policy, or the best of a handful of screened proposals."""
        if self.seeds:
            return self.seeds.popleft()
        if not self.sensitivity.losses:
            self.sensitivity.probe(lambda: not self.context.stop)
            self.solved.extend(("solver", a) for a in self._solver_ladder())
        if self.solved:
            return self.solved.popleft()
        self.rounds += 1
        if self.rounds % 6 == 0:
            self.sensitivity.refit()
            self.solved.extend(("refit", a) for a in self._solver_ladder())
            fresh = [p for p in self.solved if not self.context.known(self.space.decode(p[1]))]
            self.solved = deque(fresh[1:])
            if fresh:
                return fresh[0]
        return self._best_of_a_handful(trials)

    def tell(self, assignment: Assignment | None, trial: Trial) -> None:
        """Remember where a trial came from; Optuna hears of every one."""
        if assignment is not None and trial.number >= 0:
            self.assignments[trial.number] = assignment
        self.optuna.tell(assignment, trial)

    def _probe(self, assignment: Assignment) -> float:
        return self._screened(assignment)

    def _costs(self, assignment: Assignment) -> Mapping[str, float]:
        known = self._known_costs.get(assignment)
        if known is None:
            found = self.context.evaluator.estimate(self.space.decode(assignment))
            # what is meant to be within the budget is costed with its error on top
            known = {n: v + 1.64 * found.spread.get(n, 0.0) for n, v in found.values.items()}
            self._known_costs[assignment] = known
        return known

    def _likely(self, assignment: Assignment) -> bool:
        return self.context.likely(self.context.evaluator.estimate(self.space.decode(assignment)))

    def _bounds(self) -> dict[str, float]:
        """Upper bounds of all costs that count: the budget's, and the baseline's for the rest."""
        base = self.context.evaluator.baseline.values
        bounds = {self.cost: base[self.cost]} if self.cost in base else {}
        for limit in self.context.budget.limits:
            bound = limit.bound(base)
            bounds[limit.metric] = min(bound, bounds.get(limit.metric, bound))
        return bounds

    def _solver_ladder(self) -> list[Assignment]:
        bounds = self._bounds()
        cheapest = self._costs(self.space.hardest).get(self.cost, 0.0)
        found = []
        for share in _RUNGS:
            top = bounds.get(self.cost, cheapest)
            target = cheapest + share * (top - cheapest)
            answer = solve(
                self.space,
                self.sensitivity.losses,
                self._costs,
                {**bounds, self.cost: target},
                known=self._tables,
            )
            if answer is not None and answer not in found:
                found.append(answer)
        return found

    def _best_of_a_handful(self, trials: Sequence[Trial]) -> tuple[str, Assignment]:
        """Screen some proposals near one front member; the lowest divergence wins."""
        parent = self._parent(trials)
        proposals: dict[Assignment, str] = {}
        for _ in range(40 * self.context.config.candidates):
            if len(proposals) >= self.context.config.candidates:
                break
            origin, levels = self._proposal(parent)
            if levels not in proposals and not self.context.known(self.space.decode(levels)):
                proposals[levels] = origin
        if not proposals:
            return "tpe", self.optuna.ask()
        return self._least_divergent(proposals)

    def _parent(self, trials: Sequence[Trial]) -> Assignment | None:
        """A front member, the cost bands in turn; without a front, the nearest to the budget."""
        front = [
            t for t in self.context.front() if t.number in self.assignments and t.phase == SEARCH
        ]
        front = [t for t in front if t.policy.student is None]
        if front:
            # the dear end is where the answer lies: every other round works there
            place = len(front) - 1 if self.rounds % 2 else self.random.randrange(len(front))
            return self.assignments[front[place].number]
        done = [
            t for t in trials if t.state is TrialState.COMPLETE and t.number in self.assignments
        ]
        done = [t for t in done if t.policy.student is None]
        if not done:
            return None
        nearest = min(done, key=lambda t: max(t.violations.values(), default=0.0))
        return self.assignments[nearest.number]

    def _proposal(self, parent: Assignment | None) -> tuple[str, Assignment]:
        roll = self.random.random()
        if parent is None or roll < 0.1:
            return "tpe", self.optuna.ask()
        if roll < 0.2:
            return "jitter", self._jittered(parent)
        return "switch", self._switched(parent)

    def _switched(self, parent: Assignment) -> Assignment:
        """Harden one choice and soften one or two others, so that the cost stays about the same."""
        levels = list(parent)
        fixed = ("distill", "student")
        order = [i for i, c in enumerate(self.space.choices) if c.kind not in fixed]
        self.random.shuffle(order)
        hardened = False
        softened = 0
        limit = self._costs(parent).get(self.cost, 0.0) * 1.01
        for i in order:
            top = len(self.space.choices[i].levels) - 1
            if not hardened and levels[i] < top:
                levels[i] = min(top, levels[i] + self.random.choice((1, 1, 2)))
                hardened = True
            elif hardened and levels[i] > 0 and softened < 2:
                before = levels[i]
                levels[i] = max(0, levels[i] - self.random.choice((1, 1, 2)))
                if self._costs(tuple(levels)).get(self.cost, 0.0) > limit:
                    levels[i] = before
                else:
                    softened += 1
            if hardened and softened == 2:
                break
        return tuple(levels)

    def _jittered(self, parent: Assignment) -> Assignment:
        """The solver's answer at the parent's cost under sensitivities drawn around the fit."""
        noise = self.random.gauss
        losses = [table * 2.0 ** noise(0.0, 0.7) for table in self.sensitivity.losses]
        limits = {**self._bounds(), self.cost: self._costs(parent).get(self.cost, 0.0) * 1.001}
        found = solve(
            self.space,
            losses,
            self._costs,
            limits,
            start=parent,
            rounds=2,
            polish=False,
            known=self._tables,
        )
        return found or parent

    def _least_divergent(self, proposals: Mapping[Assignment, str]) -> tuple[str, Assignment]:
        """The proposal of least divergence, on the same images for all.

        A race with few images first does not pay: building a model costs as much as screening it.
        """
        found = {a: self._screened(a) for a in proposals}
        winner = min(found, key=lambda a: found[a])
        return proposals[winner], winner

    def _screened(self, assignment: Assignment) -> float:
        """KL of an assignment; a model that cannot be built or blows up comes last.

        Where nothing better is left it is evaluated all the same, and that trial says why it fails.
        """
        try:
            kl = self.context.screen(assignment).kl
        except Exception:
            return _HOPELESS_KL
        kl = kl if math.isfinite(kl) else _HOPELESS_KL
        self.sensitivity.observe(assignment, kl)
        return kl

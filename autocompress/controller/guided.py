"""The guided search: seeds, an exact solver, level switches on the front, and Optuna's TPE.

Every proposal is checked against the budget by the cost estimate and screened by its KL
divergence to the uncompressed outputs; only the best of a handful becomes a trial. Every other
round works on the answer, the dearest policy within the budget, as long as it loses accuracy; the
others go where the front gains most.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from autocompress.controller.loop import SURE, Context
from autocompress.controller.optuna_study import OptunaController
from autocompress.controller.promise import AccuracyForecast, expected_gain
from autocompress.controller.seeds import leading_seeds
from autocompress.controller.sensitivity import Sensitivity
from autocompress.controller.solver import Tables, cheapest, solve
from autocompress.policy.space import Assignment
from autocompress.results.front import ParetoFront, reference_point
from autocompress.results.trial import SEARCH, Trial, TrialState

_RUNGS = (1.0, 0.85, 0.7, 0.55)
"""Cost targets of the solver, as shares of the way from the cheapest policy to the bound."""

_REFIT_EVERY = 7
"""Rounds between two fits of the sensitivities; odd, to serve the answer and the front in turn."""

_STALE = 0.01
"""Estimates are kept as long as those of measured policies move by less, as a share."""

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
        self.sensitivity = Sensitivity(context.space, self._screened)
        self.assignments: dict[int, Assignment] = {}
        self.solved: deque[Assignment] = deque()
        self.rounds = 0
        self._known_costs: dict[Assignment, Mapping[str, float]] = {}
        self._tables: Tables = {}
        self._margin = SURE
        self._cheapest = context.space.hardest
        self.cost = context.cost
        self.seeds = deque(leading_seeds(context) if config.seeds else [])

    def propose(self, trials: Sequence[Trial]) -> tuple[str, Assignment] | None:
        """The next seed, solver policy, or the best of a handful of screened proposals."""
        if self.seeds:
            return self.seeds.popleft()
        if not self.sensitivity.losses:
            self.sensitivity.probe(lambda: not self.context.stop)
            self.solved.extend(self._solver_ladder())
        elif self.solved and self._overpriced(self.solved[0]):
            self.solved = deque(self._solver_ladder()[: len(self.solved)])
        if self.solved:
            return "solver", self.solved.popleft()
        self.rounds += 1
        return self._best_of_a_handful(trials)

    def tell(self, assignment: Assignment | None, trial: Trial) -> None:
        """Remember where a trial came from; Optuna hears of every one."""
        if assignment is not None and trial.number >= 0:
            self.assignments[trial.number] = assignment
            self._forget_stale_costs(assignment)
        self.optuna.tell(assignment, trial)

    def _forget_stale_costs(self, assignment: Assignment) -> None:
        """Costs are estimated anew where measuring a policy has moved its own estimate."""
        before = self._known_costs.pop(assignment, {}).get(self.cost)
        if before and abs(self._costs(assignment)[self.cost] / before - 1.0) > _STALE:
            self._known_costs.clear()
            self._tables.clear()

    def _costs(self, assignment: Assignment) -> Mapping[str, float]:
        known = self._known_costs.get(assignment)
        if known is None:
            found = self.context.estimate(assignment)
            known = {
                n: v + self._margin * found.spread.get(n, 0.0) for n, v in found.values.items()
            }
            self._known_costs[assignment] = known
        return known

    def _bounds(self) -> dict[str, float]:
        """Upper bounds of all costs that count: the budget's, and the baseline's for the rest."""
        base = self.context.evaluator.baseline.values
        bounds = {self.cost: base[self.cost]} if self.cost in base else {}
        for limit in self.context.budget.limits:
            bound = limit.bound(base)
            bounds[limit.metric] = min(bound, bounds.get(limit.metric, bound))
        return bounds

    def _overpriced(self, assignment: Assignment) -> bool:
        """Whether measuring others has shown a solved policy to cost more than is worth it."""
        top = self._top_cost(self._costs(self._cheapest)[self.cost])
        return self._costs(assignment)[self.cost] > (1.0 + _STALE) * top

    def _top_cost(self, least: float) -> float:
        """The budget's bound, or what the cheapest policy costs that lost nothing."""
        return max(least, min(self._bounds()[self.cost], self._lossless_cost()))

    def _solver_ladder(self) -> list[Assignment]:
        bounds = self._bounds()
        least = self._least_cost(bounds[self.cost])
        top = self._top_cost(least)
        found = []
        for share in _RUNGS:
            target = least + share * (top - least)
            answer = solve(
                self.space,
                self.sensitivity.losses,
                self._costs,
                {**bounds, self.cost: target},
                known=self._tables,
            )
            if answer and answer not in found and not self.context.known(self.space.decode(answer)):
                found.append(answer)
        return found

    def _least_cost(self, bound: float) -> float:
        """Cost of the cheapest policy, by estimates that have learned from the trials so far.

        What is meant to be within the bound is costed with its error on top. Where not even the
        cheapest is within it so, errors are left out: of the policies that are then within the
        bound as likely as not some are, and measuring them mends the estimate.
        """
        least = bound
        for margin in (SURE, 0.0):
            self._margin = margin
            self._known_costs.clear()
            self._tables.clear()
            # one level at a time leads to some minimum: what was tried may be below it
            tried = self._members(self.context.scored())
            starts = [self._cheapest, *(self.assignments[t.number] for t in tried)]
            start = min(starts, key=lambda a: self._costs(a)[self.cost])
            self._cheapest = cheapest(self.space, self._costs, self.cost, start)
            least = self._costs(self._cheapest)[self.cost]
            if least < bound:
                break
        return least

    def _best_of_a_handful(self, trials: Sequence[Trial]) -> tuple[str, Assignment]:
        """Screen a refitted ladder, or some proposals near front members; the most promising wins.

        At the dear end that is the lowest divergence, all being about as dear; elsewhere the
        greatest hypervolume to be expected.
        """
        front = self._members(self._front())
        answer = front[-1] if front and self.rounds % 2 and self._loses(front[-1]) else None
        proposals = self._refitted() or self._neighbours(answer, front, trials)
        if not proposals:
            return "tpe", self.optuna.ask()
        # screening takes longer than all else here, and these would be rejected after it
        hopeless = {a for a in proposals if self.context.hopeless(self.context.estimate(a))}
        possible = {a: p for a, p in proposals.items() if a not in hopeless}
        return self._most_promising(possible or proposals, trials, fill=answer is None)

    def _refitted(self) -> dict[Assignment, tuple[str, Trial | None]]:
        """Every few rounds the solver's ladder under sensitivities fitted to all that was seen."""
        if self.rounds % _REFIT_EVERY:
            return {}
        self.sensitivity.refit()
        return dict.fromkeys(self._solver_ladder(), ("refit", None))

    def _neighbours(
        self, answer: Trial | None, front: Sequence[Trial], trials: Sequence[Trial]
    ) -> dict[Assignment, tuple[str, Trial | None]]:
        """New proposals near the answer, or near some front member, with origins and parents."""
        found: dict[Assignment, tuple[str, Trial | None]] = {}
        for _ in range(40 * self.context.config.candidates):
            if len(found) >= self.context.config.candidates:
                break
            parent = answer or self._parent(front, trials)
            origin, levels = self._proposal(parent, front)
            if levels not in found and not self.context.known(self.space.decode(levels)):
                found[levels] = origin, parent
        return found

    def _front(self) -> ParetoFront:
        """Of what the search measured: trained policies of an earlier session stand apart."""
        searched = [t for t in self.context.scored() if t.phase == SEARCH]
        return ParetoFront.of(searched, self.context.objectives)

    def _members(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those that this proposer can start from."""
        return [
            t
            for t in trials
            if t.number in self.assignments and t.phase == SEARCH and t.policy.student is None
        ]

    def _loses(self, trial: Trial) -> bool:
        """Whether a trial's accuracy is under the uncompressed one by a standard error."""
        assert trial.measurement is not None
        base = self.context.evaluator.baseline
        noise = base.spread.get("accuracy", 0.0)
        return trial.measurement["accuracy"] < base["accuracy"] - noise

    def _lossless_cost(self) -> float:
        """Estimated cost of the cheapest policy so far that loses no accuracy: nothing above it
        is worth looking for."""
        costs = [
            self._costs(self.assignments[t.number]).get(self.cost, math.inf)
            for t in self._members(t for t in self.context.scored() if t.feasible)
            if not self._loses(t)
        ]
        return min(costs, default=math.inf)

    def _parent(self, front: Sequence[Trial], trials: Sequence[Trial]) -> Trial | None:
        """Some front member that counts; without a front, the nearest to the budget."""
        if front:
            floor = self._reference()[0]
            counting = [t for t in front if t.measurement and t.measurement["accuracy"] > floor]
            return self.random.choice(counting or list(front))
        done = self._members(t for t in trials if t.state is TrialState.COMPLETE)
        return min(done, key=lambda t: max(t.violations.values(), default=0.0), default=None)

    def _reference(self) -> list[float]:
        return reference_point(self.context.evaluator.baseline, self.context.objectives)

    def _proposal(self, parent: Trial | None, front: Sequence[Trial]) -> tuple[str, Assignment]:
        roll = self.random.random()
        if parent is None or roll < 0.1:
            return "tpe", self.optuna.ask()
        levels, target = self.assignments[parent.number], self._target(parent, front)
        if roll < 0.4:
            return "jitter", self._jittered(levels, target)
        return "switch", self._switched(levels, target)

    def _target(self, parent: Trial, front: Sequence[Trial]) -> float:
        """A cost between a front member's and that of its cheaper neighbour, to fill the gap.

        For the answer it is all that the budget leaves.
        """
        own = self._costs(self.assignments[parent.number]).get(self.cost, 0.0)
        place = next((i for i, t in enumerate(front) if t.number == parent.number), 0)
        if front and parent is front[-1] and self._loses(parent):
            return max(own, self._bound_beside(parent))
        if place == 0:
            return own
        below = self._costs(self.assignments[front[place - 1].number]).get(self.cost, own)
        return own - self.random.random() * max(0.0, own - below)

    def _bound_beside(self, parent: Trial) -> float:
        """The bound in terms of this proposer's costs, for policies near a measured one.

        Neighbours are off by about as much as their parent: that much is known from measuring it.
        Half a standard deviation is left for what is not shared.
        """
        levels, found = self.assignments[parent.number], parent.measurement
        bound = self._bounds().get(self.cost, math.inf)
        if found is None or not found.get(self.cost):
            return bound
        estimate = self.context.estimate(levels)
        rest = 1.0 + 0.5 * estimate.spread.get(self.cost, 0.0) / estimate[self.cost]
        return bound * self._costs(levels)[self.cost] / (found[self.cost] * rest)

    def _switched(self, parent: Assignment, target: float) -> Assignment:
        """Harden one choice and soften one or two others as long as the cost is about the target.

        Where hardening saves too little for that, nothing is softened.
        """
        levels = list(parent)
        fixed = ("distill", "student")
        order = [i for i, c in enumerate(self.space.choices) if c.kind not in fixed]
        self.random.shuffle(order)
        hardened = False
        softened = 0
        limit = max(target, min(1.01 * target, self._bounds().get(self.cost, math.inf)))
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

    def _jittered(self, parent: Assignment, target: float) -> Assignment:
        """The solver's answer at a cost, under sensitivities drawn around the fit."""
        noise = self.random.gauss
        losses = [table * 2.0 ** noise(0.0, 0.7) for table in self.sensitivity.losses]
        limits = {**self._bounds(), self.cost: target * 1.001}
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

    def _most_promising(
        self,
        proposals: Mapping[Assignment, tuple[str, Trial | None]],
        trials: Sequence[Trial],
        *,
        fill: bool,
    ) -> tuple[str, Assignment]:
        """The least divergent proposal; if the front is to be filled, that of the greatest gain.

        Where none gains anything, the nearest to the budget.

        All are screened on the same images. A race with few images first does not pay: building a
        model costs as much as screening it.
        """
        found = {a: self._screened(a) for a in proposals}
        gains = dict.fromkeys(proposals, (0.0, 0.0))
        if fill:
            gains = self._gains(proposals, found, trials)
        winner = min(found, key=lambda a: (-gains[a][0], gains[a][1], found[a]))
        return proposals[winner][0], winner

    def _gains(
        self,
        proposals: Mapping[Assignment, tuple[str, Trial | None]],
        divergences: Mapping[Assignment, float],
        trials: Sequence[Trial],
    ) -> dict[Assignment, tuple[float, float]]:
        """Hypervolume that each proposal is expected to add, and its share over the bounds."""
        base = self.context.evaluator.baseline
        done = self._members(t for t in trials if t.state is TrialState.COMPLETE)
        seen = [
            (self._screened(self.assignments[t.number]), t.measurement["accuracy"])
            for t in done
            if t.measurement
        ]
        forecast = AccuracyForecast(seen, base["accuracy"], base.spread.get("accuracy", 0.0))
        front, reference, bounds = self._front(), self._reference(), self._bounds()
        gains = {}
        for assignment, (_, parent) in proposals.items():
            costs = self._foretold(assignment, parent)
            over = max([0.0, *(costs.get(n, 0.0) / b - 1.0 for n, b in bounds.items())])
            gain = 0.0
            if not over and all(m.name in costs for m in front.objectives[1:]):
                accuracy = forecast(divergences[assignment])
                gain = expected_gain(front, reference, accuracy, forecast.sigma, costs)
            gains[assignment] = gain, over
        return gains

    def _foretold(self, assignment: Assignment, parent: Trial | None) -> dict[str, float]:
        """Estimated costs, corrected by how far the parent's estimate was off."""
        own = self._costs(assignment)
        if parent is None or parent.measurement is None:
            return dict(own)
        before = self._costs(self.assignments[parent.number])
        return {
            name: value * parent.measurement[name] / before[name]
            if before[name] > 0 and name in parent.measurement
            else value
            for name, value in own.items()
        }

    def _screened(self, assignment: Assignment) -> float:
        """KL of an assignment; a model that cannot be built or blows up comes last.

        Where nothing better is left it is evaluated all the same, and that trial says why it fails.
        """
        known = self.sensitivity.seen(assignment)
        if known is not None:
            return known
        try:
            kl = self.context.screen(assignment).kl
        except Exception:
            kl = _HOPELESS_KL
        kl = kl if math.isfinite(kl) else _HOPELESS_KL
        self.sensitivity.observe(assignment, kl)
        return kl

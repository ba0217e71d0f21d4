"""The solver's ladder: the least sensitivity at a few costs, first as trials, later refitted."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Iterable

from autocompress.controller.context import Context
from autocompress.controller.guided.costs import STALE, EstimatedCosts
from autocompress.controller.guided.history import History
from autocompress.controller.guided.methods import Round
from autocompress.controller.protocols import Proposal
from autocompress.controller.sensitivity import Sensitivity
from autocompress.controller.solver import solve
from autocompress.controller.starts import named
from autocompress.policy.space import Assignment
from autocompress.results.trial import Trial

RUNGS = (1.0, 0.85, 0.7, 0.55)
"""Cost targets of the solver, as shares of the way from the cheapest policy to the bound."""

_PREPARING = 0.1
"""Share of the search's time for screening each choice alone."""

_FEW = 20
"""Trials whose costs are estimated again whenever the estimate has moved."""

_REFIT_EVERY = 7
"""Rounds between two fits of the sensitivities at first; odd, to serve the answer and the front in
turn."""
_REFIT_SHARE = 0.05
"""Of all rounds, later: what they add to thousands changes a fit little."""


class SolverLadder:
    """Proposes the solver's answers, each to be evaluated.

    Args:
        context: of the study.
        costs, history, sensitivity: shared by the portfolio.
    """

    def __init__(
        self, context: Context, costs: EstimatedCosts, history: History, sensitivity: Sensitivity
    ) -> None:
        self.context = context
        self.costs = costs
        self.history = history
        self.sensitivity = sensitivity
        self._queue: deque[Proposal] = deque()
        self._left: list[float] = []

    def suggest(self, n: int, now: Round) -> list[Proposal]:
        """The next answers; the first call screens each choice alone."""
        if not self.sensitivity.losses:
            self._probe()
            self._queue.extend(Proposal("solver", levels) for levels in self.solved())
            self._queue.extend(Proposal("nested", levels) for levels in self.nested())
        elif self._queue and self._overpriced(self._queue[0].assignment):
            found = [Proposal("solver", levels) for levels in self.solved()]
            self._queue = deque(found[: len(self._queue)])
        return [self._queue.popleft() for _ in range(min(n, len(self._queue)))]

    def _probe(self) -> None:
        """Screen each choice alone.

        Where the search's time has an end, in a tenth of it, on as many images as that allows, and
        so that a handful of proposals takes no longer to screen than a trial to evaluate. What
        costs most comes first; choices that no time is left for take what an earlier run says of
        them, or the mean of the others.
        """
        context, probes = self.context, self.sensitivity.probes
        left, begin = context.seconds_left(), time.monotonic()
        if left is not None and probes:
            took = [t.seconds for t in self.history.complete()]
            trial = sum(took) / len(took) if took else left
            each = min(_PREPARING * left / probes, trial / context.config.candidates)
            context.screener.afford(self.costs.cheapest, each)

        def keep_going() -> bool:
            over = left is not None and time.monotonic() - begin > _PREPARING * left
            return context.may_go_on and not over

        self.sensitivity.probe(keep_going, self._most_first(), hurried=left is not None)

    def _most_first(self) -> list[int]:
        """Choices by what their hardest levels save."""
        space = self.context.space
        look = self.costs.near(space.mildest)
        saved = [look(i, len(c.levels) - 1)[self.costs.metric] for i, c in enumerate(space.choices)]
        return sorted(range(len(saved)), key=saved.__getitem__)

    def solved(self) -> list[Assignment]:
        """The solver's answers at the ladder's costs that are not settled yet.

        Those that no time is left for come first the next time.
        """
        bounds = self.costs.bounds()
        measured = [self.history.assignment(t) for t in self._few_cheapest(self.history.settled())]
        least = self.costs.least(bounds[self.context.cost], measured)
        top = self._top(least)
        found: list[Assignment] = []
        rungs = deque([*self._left, *(share for share in RUNGS if share not in self._left)])
        begin, longest = time.monotonic(), 0.0
        while rungs and self.context.may_go_on:
            since = time.monotonic()
            if longest and since - begin + longest > self.costs.solving_s:
                break
            share = rungs.popleft()
            answer = solve(
                self.context.space,
                self.sensitivity.losses,
                self.costs,
                {**bounds, self.context.cost: least + share * (top - least)},
                cheap=self.costs.cheapest,
                marginals=self.costs.marginals,
                order=self.sensitivity.order,
                seconds=self.costs.solving_s,
            )
            longest = max(longest, time.monotonic() - since)
            if answer and answer not in found and not self._known(answer):
                found.append(answer)
        self._left = list(rungs)
        return found

    def nested(self) -> list[Assignment]:
        """Of the choices that interact, the first few of their order that reach each cost.

        Beside them all that a named policy (int8) does, where that loses less than they usually do.
        """
        choices, top = self.context.space.choices, self._top(self.costs.main(self.costs.cheapest))
        sets = [self._beside_sets()]
        for i in self.sensitivity.order:
            sets.append((*sets[-1][:i], len(choices[i].levels) - 1, *sets[-1][i + 1 :]))
        least = self.costs.main(self.costs.cheapest)
        found = []
        for share in RUNGS if len(sets) > 1 else ():
            bound = least + share * (top - least)
            one = next((a for a in sets if self.costs.main(a) <= bound), None)
            if one is not None and one not in found and not self._known(one):
                found.append(one)
        return found

    def _beside_sets(self) -> Assignment:
        """The named policy that loses least, if that is less than the middle one of the sets'."""
        steps = sorted(float(self.sensitivity.losses[i][-1]) for i in self.sensitivity.order)
        offered = named(self.context.space).values() if steps and self.context.may_go_on else ()
        found = min(((self.sensitivity.screen(a), a) for a in offered), default=None)
        useful = found is not None and found[0] < steps[len(steps) // 2]
        return found[1] if found is not None and useful else self.context.space.mildest

    def _known(self, assignment: Assignment) -> bool:
        return self.context.ledger.known(self.context.space.decode(assignment)) is not None

    def _overpriced(self, assignment: Assignment) -> bool:
        """Whether measuring others has shown an answer to cost more than is worth it."""
        top = self._top(self.costs.main(self.costs.cheapest))
        return self.costs.main(assignment) > (1.0 + STALE) * top

    def _top(self, least: float) -> float:
        """The budget's bound, or what the cheapest policy costs that lost nothing."""
        bound = self.context.feasibility.bounds(self.context.cost)[self.context.cost]
        return max(least, min(bound, self._lossless()))

    def _lossless(self) -> float:
        """Estimated cost of the cheapest policy so far that loses no quality: nothing above it
        is worth looking for."""
        lossless = (t for t in self.history.settled() if t.feasible and not self.history.loses(t))
        costs = [self.costs.main(self.history.assignment(t)) for t in self._few_cheapest(lossless)]
        return min(costs, default=math.inf)

    def _few_cheapest(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those that cost least as they were measured: of thousands, these are estimated again."""
        cost = self.context.cost
        return heapq.nsmallest(
            _FEW, trials, key=lambda t: t.measurement[cost] if t.measurement else 0.0
        )


class Refit:
    """Every few rounds the ladder under sensitivities fitted to all that was screened.

    Args:
        ladder: solves anew.
    """

    def __init__(self, ladder: SolverLadder) -> None:
        self.ladder = ladder
        self._next = _REFIT_EVERY

    def suggest(self, n: int, now: Round) -> list[Proposal]:
        """The ladder's answers that are not settled yet."""
        if now.number < self._next:
            return []
        self._next = now.number + max(_REFIT_EVERY, int(_REFIT_SHARE * now.number) | 1)
        self.ladder.sensitivity.refit()
        return [Proposal("refit", levels) for levels in self.ladder.solved()[:n]]

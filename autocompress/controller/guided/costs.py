"""What assignments cost by estimate, on the safe side, kept until measuring moves the estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.controller.context import Context
from autocompress.controller.feasibility import ONE_SIDED_95
from autocompress.controller.solver import cheapest
from autocompress.policy.space import Assignment
from autocompress.results.metric import Measurement

STALE = 0.01
"""Estimates are kept as long as those of measured policies move by less, as a share."""
_MANY = 1000
"""Levels of all choices together from which on solving looks at the clock: it takes seconds."""
_SOLVING_S = 4.0


class EstimatedCosts:
    """Estimates with their error on top, by assignment.

    Args:
        context: of the study.

    Attributes:
        solving_s: seconds that solving may take for one proposal; without end where it takes less
            anyway, so that a seed makes the same study on any machine.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.metric = context.cost
        self.cheapest = context.space.hardest
        levels = sum(len(choice.levels) for choice in context.space.choices)
        self.solving_s = math.inf if levels < _MANY else _SOLVING_S
        self._tables: dict[tuple[object, ...], NDArray[np.float64]] = {}
        self._margin = ONE_SIDED_95
        self._known: dict[Assignment, Mapping[str, float]] = {}

    def __call__(self, assignment: Assignment) -> Mapping[str, float]:
        """Metric name to cost."""
        known = self._known.get(assignment)
        if known is None:
            known = self._known[assignment] = self._safe(self.context.estimate(assignment))
        return known

    def _safe(self, found: Measurement) -> Mapping[str, float]:
        return {n: v + self._margin * found.spread.get(n, 0.0) for n, v in found.values.items()}

    def bounds(self) -> dict[str, float]:
        """Metric name to upper bound, of what estimates tell; memory, say, is only measured."""
        told = self(self.cheapest)
        found = self.context.feasibility.bounds(self.metric)
        return {name: bound for name, bound in found.items() if name in told}

    def near(self, assignment: Assignment) -> Callable[[int, int], Mapping[str, float]]:
        """Costs of assignments that differ in one choice, by its place and a level."""
        found = self.context.estimates_near(assignment)
        return lambda place, level: self._safe(found(place, level))

    def marginals(
        self, assignment: Assignment, names: Sequence[str], fresh: bool = False
    ) -> list[NDArray[np.float64]]:
        """What each level of each choice adds to the costs, ``(metrics, levels)`` each.

        Found anew only where choices stand differently that have a say in them: nearly none do
        from one step of a solver to the next. How sure an estimate is depends a little on all
        others; ``fresh`` forgets what was found elsewhere.
        """
        if fresh:
            self._tables.clear()
        near, own, tables = None, self(assignment), []
        for i, choice in enumerate(self.context.space.choices):
            around = tuple(assignment[j] for j in self.context.space.beside[i])
            key = (i, assignment[i], around, *names)
            table = self._tables.get(key)
            if table is None:
                near = near or self.near(assignment)
                changed = [near(i, level) for level in range(len(choice.levels))]
                changed[assignment[i]] = own
                table = np.array([[c[n] - own[n] for c in changed] for n in names])
                self._tables[key] = table
            tables.append(table)
        return tables

    def main(self, assignment: Assignment) -> float:
        """The cost that the front trades quality for."""
        return self(assignment)[self.metric]

    def forget_if_moved(self, assignment: Assignment) -> None:
        """Estimate everything anew if measuring a policy has moved its own estimate."""
        before = self._known.pop(assignment, {}).get(self.metric)
        if before and abs(self.main(assignment) / before - 1.0) > STALE:
            self._forget()

    def _forget(self) -> None:
        self._known.clear()
        self._tables.clear()

    def least(self, bound: float, measured: Sequence[Assignment]) -> float:
        """Cost of the cheapest policy, by estimates that have learned from the trials so far.

        What is meant to be within the bound is costed with its error on top. Where not even the
        cheapest is within it so, errors are left out: of the policies that are then within the
        bound as likely as not some are, and measuring them mends the estimate.

        Args:
            bound: of the cost.
            measured: where else to begin: one level at a time leads to some minimum, and what was
                measured may be below it.
        """
        least = bound
        for margin in (ONE_SIDED_95, 0.0):
            self._margin = margin
            self._forget()
            start = min([self.cheapest, *measured], key=self.main)
            self.cheapest = cheapest(self.context.space, self.near, self.metric, start)
            least = self.main(self.cheapest)
            if least < bound:
                break
        return least

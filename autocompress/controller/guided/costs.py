"""What assignments cost by estimate, on the safe side, kept until measuring moves the estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autocompress.controller.context import Context
from autocompress.controller.feasibility import ONE_SIDED_95
from autocompress.controller.solver import Tables, cheapest
from autocompress.policy.space import Assignment

STALE = 0.01
"""Estimates are kept as long as those of measured policies move by less, as a share."""


class EstimatedCosts:
    """Estimates with their error on top, by assignment.

    Args:
        context: of the study.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.metric = context.cost
        self.cheapest = context.space.hardest
        self.tables: Tables = {}
        self._margin = ONE_SIDED_95
        self._known: dict[Assignment, Mapping[str, float]] = {}

    def __call__(self, assignment: Assignment) -> Mapping[str, float]:
        """Metric name to cost."""
        known = self._known.get(assignment)
        if known is None:
            found = self.context.estimate(assignment)
            known = {
                n: v + self._margin * found.spread.get(n, 0.0) for n, v in found.values.items()
            }
            self._known[assignment] = known
        return known

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
        self.tables.clear()

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
            self.cheapest = cheapest(self.context.space, self, self.metric, start)
            least = self.main(self.cheapest)
            if least < bound:
                break
        return least

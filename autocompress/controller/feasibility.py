"""Feasibility: what the budget says of a measurement, and of an estimate with its error."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.policy.budget import Budget
from autocompress.results.metric import Measurement
from autocompress.results.trial import within

ONE_SIDED_95 = 1.64
"""Standard deviations of a one-sided 95 % bound."""

_REJECTING = 3.0
"""Standard deviations that an estimate may err by before it rejects a policy unmeasured."""


class Feasibility:
    """Judges costs by a budget.

    Args:
        budget: of the study.
        baseline: the uncompressed model, which relative limits refer to.
    """

    def __init__(self, budget: Budget, baseline: Measurement) -> None:
        self.budget = budget
        self.baseline = baseline

    def violations(self, values: Mapping[str, float]) -> dict[str, float]:
        """Per limit of the budget, by what share of it the values are over; at most 0 is within."""
        return self.budget.violations(values, self.baseline.values)

    def bounds(self, cost: str) -> dict[str, float]:
        """Metric name to upper bound: the budget's limits, and the baseline's for ``cost``."""
        base = self.baseline.values
        found = {cost: base[cost]} if cost in base else {}
        for limit in self.budget.limits:
            bound = limit.bound(base)
            found[limit.metric] = min(bound, found.get(limit.metric, bound))
        return found

    def infeasible_by_estimate(self, estimate: Measurement) -> dict[str, float] | None:
        """Violations if an estimate is over the budget even where it errs in the policy's favour.

        Three standard deviations are taken off: what might fit is measured.
        """
        found = self._shifted(estimate, -_REJECTING)
        return None if within(found) else found

    def likely(self, estimate: Measurement) -> bool:
        """Whether an estimate is within the budget with a probability of 95 %."""
        return within(self._shifted(estimate, ONE_SIDED_95))

    def _shifted(self, estimate: Measurement, sigmas: float) -> dict[str, float]:
        """Violations of what is estimated, some standard deviations added."""
        names = [m for m in self.budget.metrics if m in estimate]
        values = {n: estimate[n] + sigmas * estimate.spread.get(n, 0.0) for n in names}
        return self.budget.on(names).violations(values, self.baseline.values)

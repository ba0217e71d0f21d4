"""The trials that guided can start from, with their assignments."""

from __future__ import annotations

from collections.abc import Iterable

from autocompress.controller.context import Context
from autocompress.controller.ledger import GrowingFront
from autocompress.controller.protocols import Settled
from autocompress.policy.space import Assignment
from autocompress.results.front import ParetoFront, reference_point
from autocompress.results.trial import SEARCH, Trial, TrialState, confirmed


class History:
    """What the search phase measured so far.

    Args:
        context: of the study.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.assignments: dict[int, Assignment] = {}
        self.trials: dict[int, Trial] = {}
        self._front = GrowingFront(context.ledger, lambda trial: trial.phase == SEARCH)

    def add(self, one: Settled) -> None:
        """Remember where a trial came from."""
        if one.assignment is not None:
            self.assignments[one.trial.number] = one.assignment
            self.trials[one.trial.number] = one.trial

    def assignment(self, trial: Trial) -> Assignment:
        """Of a member."""
        return self.assignments[trial.number]

    def members(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those of some trials that guided can start from."""
        return [
            t
            for t in trials
            if t.number in self.assignments and t.phase == SEARCH and t.policy.student is None
        ]

    def settled(self) -> list[Trial]:
        """Members however they ended; what verification found over the budget is over it."""
        return self.members(confirmed(self.context.ledger.trials))

    def complete(self) -> list[Trial]:
        """Members that were measured."""
        return self.members(t for t in self.context.ledger.trials if t.state is TrialState.COMPLETE)

    def front(self) -> ParetoFront:
        """Of what the search measured: trained policies of an earlier session stand apart."""
        return self._front()

    def reference(self) -> list[float]:
        """The reference point of hypervolumes."""
        return reference_point(self.context.feasibility.baseline, self.context.objectives)

    def loses(self, trial: Trial) -> bool:
        """Whether a trial's quality is worse than the uncompressed one by a standard error."""
        assert trial.measurement is not None
        base = self.context.feasibility.baseline
        return base.quality.lost(trial.measurement.score, base.score) > base.score_error

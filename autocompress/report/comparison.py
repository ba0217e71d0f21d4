"""The search beside the reference policies: which trials are compared, and who is ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autocompress.results.answer import rank
from autocompress.results.difference import Difference, difference
from autocompress.results.trial import Trial
from autocompress.track.view import RunView

#: two standard errors: what differs by less is not called a difference
CLEAR = 2.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The search beside one reference policy, at the same budget and training.

    Args:
        name: of the reference policy.
        reference: its trial.
        found: the best trial within the budget that got as much training and was not proposed as
            a reference policy itself; ``None`` where there is none.
        gap: quality of ``found`` less that of ``reference``, on the same samples (as independent
            where a record does not tell them); ``None`` where ``reference`` is over the budget or
            ``found`` is missing.
    """

    name: str
    reference: Trial
    found: Trial | None
    gap: Difference | None

    @property
    def outcome(self) -> Literal["won", "unclear", "lost", "not in budget"]:
        """Who is ahead, and whether by more than noise."""
        if not self.reference.feasible:
            return "not in budget"
        if self.gap is None or self.gap.gain <= 0:
            return "lost"
        return "won" if self.gap.gain > CLEAR * self.gap.stderr else "unclear"

    def __str__(self) -> str:
        name = f"{self.name} (trial {self.reference.number})"
        if self.outcome == "not in budget":
            return f"{name} does not meet the budget at all."
        if self.found is None or self.gap is None:
            return f"{name} meets the budget, and the search has nothing to set against it."
        gap, same = str(self.gap), ", its best with the same training"
        if self.outcome == "won":
            return f"The search beat {name} by {gap} with trial {self.found.number}{same}."
        if self.outcome == "unclear":
            return (
                f"The search is ahead of {name} by {gap} with trial {self.found.number}{same}, "
                "which noise alone could explain."
            )
        return f"The search did not beat {name}: {gap} with trial {self.found.number}{same}."


def compared(view: RunView) -> tuple[Comparison, ...]:
    """The search beside every reference policy."""
    return tuple(_compare(view, n, t) for n, t in view.reference_trials.items())


def _compare(view: RunView, name: str, reference: Trial) -> Comparison:
    """Set the best that got the same training against a reference policy: else it were unfair."""
    numbers = {t.number for t in view.reference_trials.values()}
    # what a random search proposes is its own
    origins = set(view.reference_trials) - {view.study.search.sampler}
    same = [
        t
        for t in view.compared
        if t.feasible
        and t.number not in numbers
        and view.proposer(t) not in origins
        and (t.phase.kind, t.phase.epochs) == (reference.phase.kind, reference.phase.epochs)
    ]
    found = min(same, key=lambda t: (rank(t), t.number), default=None)
    if found is None or not reference.feasible:
        return Comparison(name, reference, found, None)
    assert found.measurement is not None
    assert reference.measurement is not None
    gap = difference(found.measurement, reference.measurement)
    return Comparison(name, reference, found, gap)

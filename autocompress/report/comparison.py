"""The search beside the simple ways of compressing: which trials are compared, and who is ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autocompress.results.answer import rank
from autocompress.results.difference import Difference, difference
from autocompress.results.trial import Trial
from autocompress.track.view import RunView

#: two standard errors: what differs by less is not called a difference
_CLEAR = 2.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The search beside one simple way of compressing, at the same budget and training.

    Args:
        name: of the simple way.
        simple: its trial.
        found: the best trial within the budget that got as much training and was not proposed as
            a simple way itself; ``None`` where there is none.
        gap: quality of ``found`` less that of ``simple``, on the same samples (as independent
            where a record does not tell them); ``None`` where ``simple`` is over the budget or
            ``found`` is missing.
    """

    name: str
    simple: Trial
    found: Trial | None
    gap: Difference | None

    @property
    def outcome(self) -> Literal["won", "unclear", "lost", "not in budget"]:
        """Who is ahead, and whether by more than noise."""
        if not self.simple.feasible:
            return "not in budget"
        if self.gap is None or self.gap.gain <= 0:
            return "lost"
        return "won" if self.gap.gain > _CLEAR * self.gap.stderr else "unclear"

    def __str__(self) -> str:
        name = f"{self.name} (trial {self.simple.number})"
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
    """The search beside every simple way."""
    return tuple(_compare(view, n, t) for n, t in view.baseline_trials.items())


def _compare(view: RunView, name: str, simple: Trial) -> Comparison:
    """Set the best that got the same training against a simple way: anything else were unfair."""
    numbers = {t.number for t in view.baseline_trials.values()}
    # what a random search proposes is its own
    simple_ways = set(view.baseline_trials) - {view.study.search.sampler}
    same = [
        t
        for t in view.compared
        if t.feasible
        and t.number not in numbers
        and view.proposer(t) not in simple_ways
        and (t.phase.kind, t.phase.epochs) == (simple.phase.kind, simple.phase.epochs)
    ]
    found = min(same, key=lambda t: (rank(t), t.number), default=None)
    if found is None or not simple.feasible:
        return Comparison(name, simple, found, None)
    assert found.measurement is not None
    assert simple.measurement is not None
    gap = difference(found.measurement, simple.measurement)
    return Comparison(name, simple, found, gap)

"""The one place that decides what a run answers with: what is feasible, best, and nearest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autocompress.errors import NoAnswer
from autocompress.policy.budget import Budget
from autocompress.results.front import ParetoFront
from autocompress.results.metric import Allowance, Measurement, Metric
from autocompress.results.trial import Trial, TrialState, confirmed, within, worst_excess

_ROUNDING = 1e-6
"""Of a fraction, or of the baseline's value: qualities are told in single precision, and a loss of
exactly what is allowed is kept to."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a run answers with, or why it has no answer.

    Args:
        front: feasible trials that no other beats, the cheapest first.
        best: the answer, or ``None``.
        nearest: where there is no answer, the trial that comes nearest to one; ``None`` where
            nothing was measured to its end.
        reason: why there is no answer, one sentence; empty where there is one.
        remedy: what to do about it; empty where there is an answer.
    """

    front: ParetoFront
    best: Trial | None = None
    nearest: Trial | None = None
    reason: str = ""
    remedy: str = ""

    def answer(self) -> Trial:
        """The answer.

        Raises:
            NoAnswer: there is none; the message says why.
        """
        if self.best is None:
            shown = "" if self.nearest is None else f" The nearest is trial {self.nearest.number}."
            raise NoAnswer(f"{self.reason}{shown} {self.remedy}")
        return self.best


def decide(
    trials: Iterable[Trial],
    baseline: Measurement,
    objectives: Sequence[Metric],
    budget: Budget,
    max_accuracy_drop: float | None = None,
    max_quality_drop: str | float | None = None,
) -> Decision:
    """Choose the answer among trials that were scored on val.

    Without a largest drop it is the best within the budget; with one, the cheapest that keeps to
    it. What its verification found over the budget is over it. Quality on the test split is shown
    elsewhere and decides nothing here.

    Args:
        trials: judged by ``budget``; of all phases.
        baseline: the uncompressed model on val.
        objectives: quality first, then the cost.
        budget: for the reason's text.
        max_accuracy_drop: in points of the uncompressed model's accuracy; of a classification.
        max_quality_drop: in the metric's unit, or ``"2%"`` of the uncompressed model's value.
    """
    compared = [t for t in confirmed(trials) if comparable(t, objectives)]
    front = ParetoFront.of(compared, objectives)
    if not len(front):
        nearest = best_of(compared, objectives)
        return Decision(
            front,
            nearest=nearest,
            reason=f"No policy met the budget ({budget}).",
            remedy="Loosen the budget, widen the search space, or search longer with --resume.",
        )
    nearest = min(front, key=rank)  # of the front, or the tables would not show it
    most = allowed(baseline, max_accuracy_drop, max_quality_drop)
    if most is None:
        return Decision(front, nearest)
    quality = baseline.quality
    most += _ROUNDING * (1.0 if quality.fraction else abs(baseline.score))
    best = next((t for t in front if _lost(t, baseline) <= most), None)
    if best is not None:
        return Decision(front, best)
    within = f" within the budget ({budget})" if budget.limits else ""
    asked = _asked(quality, max_accuracy_drop, max_quality_drop)
    return Decision(
        front,
        nearest=nearest,
        reason=f"No policy{within} keeps to {asked}: the least that one loses is "
        f"{quality.gap(drop(nearest, baseline), signed=False)}.",
        remedy="Allow a larger drop or a looser budget, train for longer (recovery.epochs), or "
        "search longer with --resume.",
    )


def judged(trial: Trial, budget: Budget, baseline: Measurement) -> Trial:
    """The same trial under another budget; one that was not measured to its end stays as it is.

    What other models of the run were measured by and this one was not, such as a percentile that
    came along with long timings alone, it does not keep to.
    """
    if trial.state is not TrialState.COMPLETE or trial.measurement is None:
        return trial
    values = trial.measurement.values
    untold = [m for m in budget.metrics if m in baseline and m not in values]
    told = Budget(*(limit for limit in budget.limits if limit.metric not in untold))
    found = told.violations(values, baseline.values)
    return replace(trial, violations={**found, **dict.fromkeys(untold, math.nan)})


def rejudged(trial: Trial, budget: Budget, baseline: Measurement) -> Trial:
    """As ``judged``, for a search that goes on: a rejection is reconsidered, too.

    One that is still over the budget by the estimate that it was rejected on stays rejected. Of
    others nothing is known yet: they become duplicates, which settle nothing.
    """
    if trial.state is not TrialState.REJECTED or trial.measurement is None:
        return judged(trial, budget, baseline)
    found = budget.violations(trial.measurement.values, baseline.values)
    if not within(found):
        return replace(trial, violations=found)
    reason = "rejected under an earlier budget"
    return replace(trial, state=TrialState.DUPLICATE, reason=reason)


def comparable(trial: Trial, objectives: Sequence[Metric]) -> bool:
    """Whether a trial is one model, complete, was scored on val, and has every objective."""
    return (
        trial.state is TrialState.COMPLETE
        and trial.phase.kind in ("search", "recover")
        and trial.measurement is not None
        and all(m.name in trial.measurement for m in objectives)
    )


def best_of(trials: Iterable[Trial], objectives: Sequence[Metric]) -> Trial | None:
    """The first by ``rank`` of those that can be compared: the best feasible one, else the nearest.

    Args:
        trials: ``confirmed``, where some of them were verified.
        objectives: that a trial must have.
    """
    return min((t for t in trials if comparable(t, objectives)), key=rank, default=None)


def rank(trial: Trial) -> tuple[bool, float]:
    """Sort key of complete trials: feasible ones first, the best quality first of all.

    Of those over the budget the nearest to it comes first.
    """
    if trial.feasible and trial.measurement is not None:
        return False, trial.measurement.quality.loss(trial.measurement.score)
    return True, worst_excess(trial.violations)


def drop(trial: Trial, baseline: Measurement) -> float:
    """Quality that a measured trial loses, as people read it: in points, or the metric's unit.

    Below 0 where it gains, whichever way the metric runs.
    """
    return baseline.quality.shown(_lost(trial, baseline))


def allowed(
    baseline: Measurement,
    max_accuracy_drop: float | None = None,
    max_quality_drop: str | float | None = None,
) -> float | None:
    """The largest loss of quality that was asked for, in the metric's unit, or ``None``."""
    if max_quality_drop is not None:
        return Allowance.parse(max_quality_drop).of(baseline.score)
    return None if max_accuracy_drop is None else max_accuracy_drop / 100


def _asked(quality: Metric, accuracy: float | None, general: str | float | None) -> str:
    if general is None:
        return f"an {quality.name} drop of {accuracy:g} points"
    most = Allowance.parse(general)
    unit = "" if most.relative else f" {quality.unit}".rstrip()
    return f"a loss of {most}{unit} of {quality.name}"


def _lost(trial: Trial, baseline: Measurement) -> float:
    assert trial.measurement is not None
    return baseline.quality.lost(trial.measurement.score, baseline.score)

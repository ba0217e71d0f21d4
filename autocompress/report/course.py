"""How a study went: growth, which proposers paid, where time went, what was foretold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from autocompress.report.review import short
from autocompress.results.rank import rank_correlation
from autocompress.results.screened import Screened
from autocompress.results.trial import Trial, TrialState
from autocompress.track.view import Point, RunView, value


def course(view: RunView) -> dict[str, Any]:
    """What the page draws of a study's course, JSON-able."""
    return {
        "growth": _growth(view),
        "origins": _origins(view),
        "spent": _spent(view),
        "expected": _expected(view),
    }


def _growth(view: RunView) -> dict[str, Any]:
    """Hypervolume and best feasible quality over the time that the study has been running."""
    points = steps(view.history)
    short_study = view.seconds < 180
    return {
        "unit": "seconds" if short_study else "minutes",
        "time": [short(p.elapsed_s / (1 if short_study else 60)) for p in points],
        "hypervolume": [short(p.hypervolume) for p in points],
        "best": [
            None if p.best_quality is None else short(view.quality.shown(p.best_quality))
            for p in points
        ],
        "trial": [p.trial for p in points],
    }


def steps(history: Sequence[Point]) -> list[Point]:
    """The points at which something grew, and the last: between them the curves are level."""
    grown = [
        point
        for before, point in pairwise(history)
        if (before.hypervolume, before.best_quality) != (point.hypervolume, point.best_quality)
    ]
    ends = [*history[:1], *grown, *history[-1:]]
    return list(dict.fromkeys(ends))


def _origins(view: RunView) -> list[dict[str, Any]]:
    """Per proposer: trials, members of the front, hypervolume that its trials added, seconds.

    A recovered trial counts for whoever proposed the policy that it recovers.
    """
    added: dict[str, float] = {}
    before = 0.0
    for point in view.history:
        origin = view.proposer(view.by_number[point.trial])
        added[origin] = added.get(origin, 0.0) + point.hypervolume - before
        before = point.hypervolume
    seconds: dict[str, float] = {}
    for trial in view.compared:
        origin = view.proposer(trial)
        seconds[origin] = seconds.get(origin, 0.0) + trial.seconds
    return [
        {
            "name": name,
            "trials": tried,
            "front": kept,
            "hypervolume": short(added.get(name, 0.0)),
            "seconds": short(seconds.get(name, 0.0)),
        }
        for name, (tried, kept) in view.origins().items()
    ]


_PARTS = (
    ("build_s", "build, repair and train"),
    ("export_s", "export"),
    ("score_s", "score"),
    ("time_s", "time the file"),
    ("waited_s", "wait for a quiet machine"),
)
"""What an evaluation's record says of its seconds."""


def _spent(view: RunView) -> list[dict[str, Any]]:
    """Seconds of evaluations by what they went into, per phase; the longest first.

    What a record does not tell apart, and evaluations that failed, are the rest.
    """
    found: dict[str, dict[str, float]] = {}

    def add(part: str, trial: Trial, seconds: float) -> None:
        if seconds > 0:
            row = found.setdefault(part, {})
            row[trial.phase.kind] = row.get(trial.phase.kind, 0.0) + seconds

    for trial in view.trials:
        if trial.state is TrialState.FAILED:
            add("failed evaluations", trial, trial.seconds)
        elif trial.state is TrialState.COMPLETE and trial.measurement is not None:
            context = trial.measurement.context
            told = {name: short(context.get(name)) or 0.0 for name, _ in _PARTS}
            told["time_s"] = max(0.0, told["time_s"] - told["waited_s"])
            for name, part in _PARTS:
                add(part, trial, told[name])
            add("the rest", trial, trial.seconds - sum(told.values()))
    rows = [{"name": name, "total": sum(row.values()), **row} for name, row in found.items()]
    return sorted(rows, key=lambda row: -row["total"])


def _expected(view: RunView) -> list[list[float]]:
    """Per trial of the search: its number, the latency expected and measured, and the sigma, ms."""
    rows = []
    for trial in view.compared:
        told = trial.measurement.context.get("expected") if trial.measurement else None
        if isinstance(told, Mapping) and trial.phase.kind == "search":
            ms, sigma = short(told.get("latency_ms")), short(told.get("sigma_ms"))
            measured = short(value(trial, "latency_ms"))
            if ms and sigma and measured:
                rows.append([trial.number, ms, measured, sigma])
    return rows


@dataclass(frozen=True, slots=True)
class ScreeningSaved:
    """What looking at policies quickly was good for.

    Args:
        looked: policies that were looked at.
        evaluated: trials of the search that were measured.
        saved_s: what evaluating the others would have taken, at the median of those measured.
        order: rank correlation of divergence and quality, where both are known; 1 is all the same.
        pairs: trials of which both are known.
    """

    looked: int
    evaluated: int
    saved_s: float
    order: float | None
    pairs: int


def screening(view: RunView, screened: Mapping[str, Screened]) -> ScreeningSaved | None:
    """What screening saved; ``None`` where nothing was screened."""
    trials = [t for t in view.compared if t.phase.kind == "search"]
    if not screened or not trials:
        return None
    both = [
        (t.measurement.quality.loss(t.measurement.score), screened[t.policy.untrained_digest].kl)
        for t in trials
        if t.measurement is not None and t.policy.untrained_digest in screened
    ]
    others = len(screened) - len({t.policy.untrained_digest for t in trials} & set(screened))
    typical = median(t.seconds for t in trials)
    order = rank_correlation(both)
    return ScreeningSaved(len(screened), len(trials), others * typical, order, len(both))

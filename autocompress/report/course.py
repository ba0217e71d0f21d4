"""How a study went, as plain data for the page: growth, and who proposed what paid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from autocompress.report.review import short
from autocompress.track.view import Point, RunView


def course(view: RunView) -> dict[str, Any]:
    """What the page draws of a study's course, JSON-able."""
    return {"growth": _growth(view), "origins": _origins(view)}


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

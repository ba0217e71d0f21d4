"""What a progress display is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autocompress.results.metric import ACCURACY, Metric
from autocompress.results.trial import Trial


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """What a progress display shows after every trial.

    Args:
        phase: ``search``, ``references``, ``finish``, ``recover`` or ``verify``.
        done, total: trials of the phase; ``total`` is ``None`` where the clock decides.
        best_quality: of the feasible trials, or ``None``.
        hypervolume: of the feasible front.
        seconds_left: of the whole study where it has an end, else of the phase; or ``None``.
        waiting: share of the evaluations' time in which timing waited for a quiet machine.
        trial: the one that was just finished.
        quality: what the model is judged by.
    """

    phase: str
    done: int
    total: int | None
    best_quality: float | None
    hypervolume: float
    seconds_left: float | None
    waiting: float = 0.0
    trial: Trial | None = None
    quality: Metric = ACCURACY


ProgressCallback = Callable[[SearchProgress], None]

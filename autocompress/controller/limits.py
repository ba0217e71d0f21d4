"""How long an evaluation may take before it is given up."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

from autocompress.results.trial import Phase, Trial, TrialState

_LEAST_S, _UNKNOWN_S = 600.0, 3600.0
_ALIKE, _EPOCH = 20.0, 200.0
_RECENT = 9
_SURPRISE = 1.25
"""How much longer than the latest ones an evaluation is expected to take at most."""


class Durations:
    """What evaluations took at most, by kind of phase and epochs of training.

    Args:
        trials: so far.
    """

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self._longest: dict[tuple[str, float], float] = {}
        self._recent: dict[str, deque[float]] = {}
        for trial in trials:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        """Take note of one more trial; what came to nothing says nothing."""
        if trial.state is TrialState.COMPLETE:
            key = trial.phase.kind, trial.phase.epochs
            self._longest[key] = max(trial.seconds, self._longest.get(key, 0.0))
            if trial.phase.kind == "verify" or trial.phase.epochs == 0:
                recent = self._recent.setdefault(trial.phase.kind, deque(maxlen=_RECENT))
                recent.append(trial.seconds)

    def expected_s(self, phase: Phase) -> float:
        """Seconds that an evaluation will probably take, but for training; 0 before the first one.

        Where none of its kind has ended, it is what evaluations of the search take, and twice as
        much where the thorough reconstruction comes in.
        """
        for kind, factor in ((phase.kind, 1.0), ("search", 1.0 if phase.kind == "search" else 2.0)):
            if kind in self._recent:
                return _SURPRISE * factor * statistics.median(self._recent[kind])
        return 0.0

    def limit_s(self, asked: float | None, phase: Phase) -> float:
        """Seconds after which an evaluation is given up.

        Without a wish it is twenty times what the longest one of the same phase took, ten minutes
        at least. Before there is one, it is an hour, and two hundred times the longest of any phase
        for each epoch of training.

        Args:
            asked: the study's own limit.
            phase: of the evaluation.
        """
        if asked is not None:
            return asked
        alike = self._longest.get((phase.kind, phase.epochs))
        if alike is not None:
            return max(_LEAST_S, _ALIKE * alike)
        longest = max(self._longest.values(), default=0.0)
        return _UNKNOWN_S + _EPOCH * phase.epochs * longest + _ALIKE * longest

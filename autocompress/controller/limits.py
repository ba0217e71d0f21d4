"""How long an evaluation may take before it is given up."""

from __future__ import annotations

from collections.abc import Iterable

from autocompress.results.trial import Phase, Trial, TrialState

_LEAST_S, _UNKNOWN_S = 600.0, 3600.0
_ALIKE, _EPOCH = 20.0, 200.0


def trial_limit_s(asked: float | None, trials: Iterable[Trial], phase: Phase) -> float:
    """Seconds after which an evaluation is given up.

    Without a wish it is twenty times what the longest one of the same phase took, ten minutes at
    least. Before there is one, it is an hour, and two hundred times the longest of any phase for
    each epoch of training.

    Args:
        asked: the study's own limit.
        trials: so far.
        phase: of the evaluation.
    """
    if asked is not None:
        return asked
    took = [(t.phase, t.seconds) for t in trials if t.state is TrialState.COMPLETE]
    alike = [seconds for of, seconds in took if (of.kind, of.epochs) == (phase.kind, phase.epochs)]
    if alike:
        return max(_LEAST_S, _ALIKE * max(alike))
    longest = max((seconds for _, seconds in took), default=0.0)
    return _UNKNOWN_S + _EPOCH * phase.epochs * longest + _ALIKE * longest

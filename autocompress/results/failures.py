"""What failed in a study, and why: a phase in which everything failed is never silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.results.trial import PhaseKind, Trial, TrialState

_NAMES: dict[PhaseKind, str] = {
    "search": "The search",
    "recover": "Recovery",
    "verify": "Verification",
    "cascade": "The cascade",
}
_LEFT: dict[PhaseKind, str] = {
    "search": "Nothing was measured.",
    "recover": "Nothing was trained or finished; what is shown is as the search found it.",
    "verify": "Nothing was measured again, and nothing on the test split.",
    "cascade": "The run's single models stand as they are.",
}
_TRACEBACK = "Traceback (most recent call last):\n"


@dataclass(frozen=True, slots=True)
class FailedPhase:
    """A phase, or a rung of recovery, of which every trial failed.

    Args:
        kind: of the phase.
        rung: of recovery, from 1; 0 of the other phases.
        trials: how many failed.
        reason: of most of them, one line.
    """

    kind: PhaseKind
    rung: int
    trials: int
    reason: str

    def __str__(self) -> str:
        """What people are told."""
        name = _NAMES[self.kind] if self.rung < 2 else f"Rung {self.rung} of recovery"
        left = _LEFT[self.kind] if self.rung < 2 else "What is shown is from the rungs before it."
        count = f"all of its {self.trials} trials did" if self.trials > 1 else "its one trial did"
        return (
            f"{name} failed, as {count}: {self.reason.rstrip('.')}. {left} Mend that and go on "
            "with --resume, which tries failed trials again."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``--json`` prints it."""
        return {
            "phase": self.kind,
            "rung": self.rung,
            "trials": self.trials,
            "reason": self.reason,
        }


def failed_phases(trials: Iterable[Trial]) -> list[FailedPhase]:
    """Phases that had trials, all of which failed, in the order in which they began.

    Rejections and duplicates were not evaluated, and count for nothing here.
    """
    by_phase: dict[tuple[PhaseKind, int], list[Trial]] = {}
    for trial in trials:
        if trial.state in (TrialState.COMPLETE, TrialState.FAILED):
            rung = trial.phase.rung if trial.phase.kind == "recover" else 0
            by_phase.setdefault((trial.phase.kind, rung), []).append(trial)
    return [
        FailedPhase(kind, rung, len(own), reasons(own)[0][0])
        for (kind, rung), own in by_phase.items()
        if all(trial.state is TrialState.FAILED for trial in own)
    ]


def reasons(trials: Sequence[Trial]) -> list[tuple[str, int]]:
    """Why some trials failed, the most frequent first, each with how many it befell."""
    failed = (trial for trial in trials if trial.state is TrialState.FAILED)
    return Counter(why(trial) for trial in failed).most_common()


def why(trial: Trial) -> str:
    """The exception that a trial failed by, in one line; the journal has where it was raised."""
    before, _, frames = trial.reason.strip().partition(_TRACEBACK)
    # of an exception that was raised from another one, the last
    lines = frames.rpartition(_TRACEBACK)[2].splitlines()
    raised = next((line for line in lines if line.strip() and not line.startswith(" ")), "")
    return (before.partition("\n")[0] + raised).strip() or "unknown"

"""The time of a whole study: what each phase may take of it, so that it ends with an answer.

Phases are planned against the clock from what the study has measured so far. The search ends early
enough for what comes after it; recovery trains as many candidates for as many epochs as fit; what
would not end in time is not begun, and is named at the end.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from autocompress.controller.limits import Durations
from autocompress.errors import InputError
from autocompress.policy.recovery import RecoveryConfig
from autocompress.results.trial import SEARCH, Phase

_log = logging.getLogger(__name__)
RECOVERY_SHARE, FINISH_SHARE = 0.5, 0.25
"""Of the time after preparation: for training, or for the thorough reconstruction alone."""
_MORE_VERIFIED = 2
"""Verifications that the search leaves time for beside the answer's."""
_MOST_BESIDE = 0.3
"""Of the time after preparation: for these and the reference policies, at most."""
_END_S = 5.0
"""For the report, the recipe, and closing MLflow; the uncompressed model on test comes on top."""
_LEAST_EPOCHS = 0.05
LOOKING_SHARE = 0.03
"""Of the time left: for the training steps that are timed."""
SLOWER = 1.3
"""Training is planned as if it were so much slower: what is not ended in time is lost."""
_WAITING_SHARE = 0.01
_CASCADE_S = 120.0
"""For early exits, and for timing a cascade on the sequence of test inputs."""
_CASCADE_SHARE = 0.15
"""Of the whole time: kept for a cascade, at most."""
_OVER_S, _OVER_SHARE = 20.0, 0.05
_LEAST_LIMIT_S = 5.0
_DISTILLED = 1.5
"""How much longer an epoch with a teacher takes, about."""


@dataclass(frozen=True, slots=True)
class CascadePlan:
    """What there is time for in making a cascade.

    Args:
        members: trials that are built again; ``None`` is all of them.
        early_exits: whether networks are offered with early exits, too.
        timing_s: seconds that its files may be timed.
    """

    members: int | None = None
    early_exits: bool = True
    timing_s: float = _CASCADE_S


@dataclass
class TimeBudget:
    """How much time a study has, and has left.

    Args:
        total_s: of the whole study, in seconds; ``None`` sets no limit.
        started: its beginning on the clock.
        clock: in seconds.
        left_out: phase to the number of evaluations that were not begun, for lack of time.
        notes: what was changed to fit the time, in sentences.
        recovery_share: of the time after preparation that recovery gets, in [0, 1).
        epoch_s: seconds of an epoch of training, as far as that is known.
        refine_s: seconds that repair without labels may take of a policy, where it is asked for.
        cascade: whether one is to be made at the end.
    """

    total_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    started: float = field(default=math.nan)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recovery_share: float = FINISH_SHARE
    epoch_s: float = 0.0
    refine_s: float = 0.0
    cascade: bool = False
    _searching_since_s: float | None = None
    _verified: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.started):
            self.started = self.clock()

    @property
    def left_s(self) -> float:
        """Seconds until the end; infinite without a limit, below zero after it."""
        return math.inf if self.total_s is None else self.total_s - self.used_s

    @property
    def used_s(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.started

    @property
    def waiting_s(self) -> float:
        """Seconds that a timing may wait for a quiet machine."""
        return math.inf if self.total_s is None else _WAITING_SHARE * self.total_s

    def limit_s(self, durations: Durations) -> float:
        """Seconds that an evaluation that was begun may take; a little over the end, if need be."""
        if self.total_s is None:
            return math.inf
        over = max(_OVER_S, _OVER_SHARE * self.total_s) / 2
        return max(_LEAST_LIMIT_S, self.left_s + over - self.kept_s("verify", durations))

    def check_prepared(self, text: str, fraction: float = 0.0) -> None:
        """See that preparation leaves time for at least one trial; once the search began it did.

        Args:
            text: what is being prepared.
            fraction: of it that is done, in [0, 1].

        Raises:
            InputError: the time is over.
        """
        if self.left_s > _END_S or self._searching_since_s is not None:
            return
        assert self.total_s is not None
        done = f" ({text}, {fraction:.0%})" if 0 < fraction < 1 else f" ({text})"
        raise InputError(
            f"A time of {self.total_s:.0f} s is over before the first trial{done}: preparing alone "
            f"takes more than {max(0.0, self.used_s):.0f} s here. Give the study at least "
            f"{_rounded(3 * self.used_s)} s (`--timeout`). What is prepared is cached, so that the "
            "next attempt comes further."
        )

    def kept_s(self, phase: str, durations: Durations) -> float:
        """Seconds that are kept for what comes after a phase.

        Args:
            phase: ``references``, ``finish``, ``recover`` or ``verify``.
            durations: of the evaluations so far.
        """
        end = _END_S + durations.expected_s(SEARCH)
        if self.cascade and self.total_s is not None:
            end += min(_CASCADE_S, _CASCADE_SHARE * self.total_s)
        if phase == "verify":
            return end
        return end + durations.expected_s(Phase("verify"))

    def search_begins(self) -> None:
        """From now on the search's share of the time passes."""
        self._searching_since_s = self.used_s

    def search_s(self, references: int, durations: Durations) -> float:
        """Seconds that are left of the search's share; infinite without a limit.

        Args:
            references: policies that are evaluated after it, at most.
            durations: of the evaluations so far.
        """
        if self.total_s is None or self._searching_since_s is None:
            return math.inf
        whole = self.total_s - self._searching_since_s
        more = references * durations.expected_s(SEARCH)
        more += _MORE_VERIFIED * durations.expected_s(Phase("verify"))
        later = self.kept_s("references", durations) + min(more, _MOST_BESIDE * whole)
        rest = max(0.0, whole - later)
        return self._searching_since_s + (1 - self.recovery_share) * rest - self.used_s

    def fits(self, phase: str, job: Phase, durations: Durations, *, refined: bool = False) -> bool:
        """Whether an evaluation would end early enough; notes it where it would not.

        Args:
            phase: that asks for it.
            job: of the evaluation.
            durations: of the evaluations so far.
            refined: whether repair without labels is a part of it.
        """
        expected = durations.expected_s(job)
        if job.kind == "recover":  # a verification takes the weights that were trained
            expected += job.epochs * self.epoch_s
        if refined:
            expected = max(expected, durations.expected_s(SEARCH) + self.refine_s)
        kept = self.kept_s(phase, durations)
        if phase == "verify" and not self._verified:
            kept = 0.0  # an answer that nobody has verified is worth little
        if expected + kept <= self.left_s:
            self._verified |= phase == "verify"
            return True
        self.left_out[phase] = self.left_out.get(phase, 0) + 1
        return False

    def plan_cascade(self, members: int, durations: Durations) -> CascadePlan | None:
        """How a cascade can be made in the time left; ``None``, noted, where it cannot.

        Args:
            members: trials that it could be chosen from, each of which is built again.
            durations: of the evaluations so far.
        """
        each, left = durations.expected_s(SEARCH), self.left_s - _END_S
        if members * each + _CASCADE_S <= left:
            return CascadePlan()
        timing = min(_CASCADE_S, left / 3)
        many = members if each <= 0 else min(members, int((left - timing) / each))
        if many < 1 or left <= 0:
            self.left_out["cascade"] = 1
            return None
        self.note(
            f"There was time to choose the cascade from {many} of {members} trials, without early "
            "exits. `autocompress cascade` chooses from all."
        )
        return CascadePlan(many, False, timing)

    def note(self, sentence: str) -> None:
        """Keep and show what was changed to fit the time."""
        self.notes.append(sentence)
        _log.info("%s", sentence)

    def as_dict(self) -> dict[str, object]:
        """For ``--json`` and the report."""
        return {
            "budget_s": self.total_s,
            "used_s": round(self.used_s, 1),
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }


def fit_recovery(
    config: RecoveryConfig, seconds: float, epoch_s: float, build_s: float, slots: int = 1
) -> RecoveryConfig:
    """As much of a recovery as fits into some seconds.

    Rungs go first, then the comparison with and without a teacher, then candidates, then epochs:
    one candidate that is trained to the end is worth more than several by half.

    Args:
        config: as the study asks.
        seconds: that it may take.
        epoch_s: seconds of one epoch.
        build_s: seconds of one trial around its training.
        slots: evaluations at once.

    Returns:
        A recovery that fits; one with ``epochs: 0`` trains nothing.
    """

    def needed(asked: RecoveryConfig) -> float:
        later = min(2, asked.candidates)
        compared = 1 if asked.compare_distillation else 0
        trained = asked.candidates + _DISTILLED * compared
        trained += sum(2.0**rung * later for rung in range(1, asked.rungs))
        built = asked.candidates + compared + (asked.rungs - 1) * later
        return (trained * asked.epochs * epoch_s + built * build_s) / slots

    for rungs in range(config.rungs, 0, -1):
        fitting = config.model_copy(update={"rungs": rungs})
        if needed(fitting) <= seconds:
            return fitting
    fitting = config.model_copy(update={"rungs": 1, "compare_distillation": False})
    for candidates in range(config.candidates, 0, -1):
        fitting = fitting.model_copy(update={"candidates": candidates})
        if needed(fitting) <= seconds:
            return fitting
    epochs = max(0.0, seconds - build_s) / epoch_s if epoch_s > 0 else config.epochs
    epochs = math.floor(20 * epochs) / 20
    if epochs < _LEAST_EPOCHS:
        return config.model_copy(update={"epochs": 0.0})
    return fitting.model_copy(update={"epochs": min(epochs, config.epochs)})


def told(config: RecoveryConfig) -> str:
    """What a recovery trains, in words."""
    if config.epochs <= 0:
        return "no training"
    rungs = f" in {config.rungs} rungs" if config.rungs > 1 else ""
    many = "candidate" if config.candidates == 1 else "candidates"
    beside = ", with and without a teacher" if config.compare_distillation else ""
    return f"{config.candidates} {many} for {config.epochs:g} epochs{rungs}{beside}"


def _rounded(seconds: float) -> int:
    """Up to something that people say."""
    step = 10 if seconds < 120 else 60
    return int(step * math.ceil(seconds / step))

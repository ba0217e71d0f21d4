"""One evaluated policy, and where in the study it happened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from autocompress.policy.claims import Count, Number
from autocompress.policy.policy import Policy
from autocompress.policy.section import Section, read_as
from autocompress.results.metric import Measurement

MUCH_WAITING = 0.1
"""A share of waiting worth telling people about; less comes and goes on any machine."""

PhaseKind = Literal["search", "recover", "verify", "cascade"]


class TrialState(StrEnum):
    """How a trial ended."""

    COMPLETE = "COMPLETE"
    REJECTED = "REJECTED"
    DUPLICATE = "DUPLICATE"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Phase:
    """What an evaluation is for, and how much training it gets.

    Args:
        kind: ``search`` (zero-shot, val split), ``recover`` (fine-tuned, val split) or
            ``verify`` (test split, once). ``cascade``: several measured models one after another,
            with no policy of their own.
        epochs: fine-tuning epochs; 0 in the search phase.
        rung: number of the recovery rung, from 1; 0 outside recovery.
    """

    kind: PhaseKind = "search"
    epochs: float = 0.0
    rung: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``Phase(**d)`` inverts it."""
        return {"kind": self.kind, "epochs": self.epochs, "rung": self.rung}


SEARCH = Phase()


_FAR_OVER = 1e6
"""By what share of a limit, where nothing tells it."""


def exceeded(violations: Mapping[str, float]) -> dict[str, float]:
    """The limits that are not met, and by how much; what is no number meets none.

    Args:
        violations: by what share of each limit it is exceeded; see ``Budget.violations``.
    """
    return {metric: excess for metric, excess in violations.items() if not excess <= 0}


def worst_excess(violations: Mapping[str, float]) -> float:
    """By what share the limit that is missed most is exceeded; 0 without limits.

    At most 0 where all are met, and infinite where one is no number.
    """
    found = (math.inf if math.isnan(v) else v for v in violations.values())
    return max(found, default=0.0)


def within(violations: Mapping[str, float]) -> bool:
    """Whether nothing is over the budget."""
    return not exceeded(violations)


@dataclass(frozen=True)
class Trial:
    """A policy and what came of it.

    Args:
        number: from 0, unique in the run, in the order of asking.
        policy: what was evaluated.
        phase: at which fidelity.
        state: how it ended.
        origin: which proposer it came from (``uniform``, ``solver``, ``switch``, ``tpe``, ...).
        measurement: complete measurements; of a ``REJECTED`` trial, the estimate that it was
            rejected on; ``None`` for ``FAILED``.
        violations: per limit of the budget; ``within`` judges them.
        reason: of a rejection, duplicate or failure, for people.
        seed: of everything random in the evaluation.
        seconds: wall-clock time of the evaluation.
        parent: number of the trial that this one recovers or verifies, or duplicates.
    """

    number: int
    policy: Policy
    phase: Phase = SEARCH
    state: TrialState = TrialState.COMPLETE
    origin: str = ""
    measurement: Measurement | None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    seed: int = 0
    seconds: float = 0.0
    parent: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "violations", MappingProxyType(dict(self.violations)))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return (Trial, tuple({**values, "violations": dict(self.violations)}.values()))

    @property
    def feasible(self) -> bool:
        """Complete and within every limit of the budget."""
        return self.state is TrialState.COMPLETE and within(self.violations)

    @property
    def constraints(self) -> dict[str, float]:
        """Violations as samplers take them: what is no number is far over its limit."""
        return {m: v if math.isfinite(v) else _FAR_OVER for m, v in self.violations.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain data, one line of ``trials.jsonl``; ``from_dict`` inverts it."""
        return {
            "number": self.number,
            "phase": self.phase.as_dict(),
            "state": str(self.state),
            "origin": self.origin,
            "policy": self.policy.as_dict(),
            "digest": self.policy.digest,
            "measurement": self.measurement.as_dict() if self.measurement else None,
            "violations": dict(self.violations),
            "feasible": self.feasible,
            "reason": self.reason,
            "seed": self.seed,
            "seconds": self.seconds,
            "parent": self.parent,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """Inverse of ``as_dict``.

        Raises:
            InputError: it does not have the form of a trial.
        """
        read_as(_Record, {k: v for k, v in data.items() if k in _RECORDED}, "the trial")
        measured = data.get("measurement")
        return cls(
            number=data["number"],
            policy=Policy.read(data["policy"], where="the policy"),
            phase=Phase(**data["phase"]),
            state=TrialState(data["state"]),
            origin=data.get("origin", ""),
            measurement=Measurement.from_dict(measured) if measured else None,
            violations=data.get("violations", {}),
            reason=data.get("reason", ""),
            seed=data.get("seed", 0),
            seconds=data.get("seconds", 0.0),
            parent=data.get("parent"),
        )


class _PhaseRecord(Section):
    """The form of a ``Phase``."""

    kind: PhaseKind
    epochs: Number = 0.0
    rung: Count = 0


class _Record(Section):
    """The form of a ``Trial``; its policy and its measurement are checked where they are read."""

    number: Count
    phase: _PhaseRecord
    state: TrialState
    policy: dict[str, Any]
    measurement: dict[str, Any] | None = None
    origin: str = ""
    violations: dict[str, Number] = Field(default_factory=dict)
    reason: str = ""
    seed: Annotated[int, Strict()] = 0
    seconds: Number = 0.0
    parent: Count | None = None


_RECORDED = frozenset(_Record.model_fields)


def confirmed(trials: Iterable[Trial]) -> list[Trial]:
    """The same trials; what its verification found over the budget is over it.

    Of many policies near a bound those look best that noise made look quicker. Measured again, some
    are over it: they, and whatever else costs the same, are not within the budget.
    """
    trials = list(trials)
    over: dict[str, Trial] = {
        t.policy.untrained_digest: t
        for t in trials
        if t.phase.kind == "verify" and t.state is TrialState.COMPLETE and not t.feasible
    }
    return [_worse(t, over.get(t.policy.untrained_digest)) for t in trials] if over else trials


class Waiting:
    """How much of the evaluations' time was spent in waiting for a quiet machine to time on.

    Args:
        trials: so far.
    """

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self._waited = self._seconds = 0.0
        for trial in trials:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        """Take note of one more trial; a duplicate has the measurement of another one."""
        if trial.state is TrialState.COMPLETE and trial.measurement is not None:
            self._waited += trial.measurement.context.get("waited_s", 0.0)
            self._seconds += trial.seconds

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self._waited / self._seconds if self._seconds else 0.0


def _worse(trial: Trial, check: Trial | None) -> Trial:
    if check is None or trial.state is not TrialState.COMPLETE:
        return trial
    both = {n: max(v, check.violations.get(n, v)) for n, v in trial.violations.items()}
    return replace(trial, violations=both)

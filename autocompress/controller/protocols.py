"""What the search needs from the other rooms. No torch, no Optuna, no Ray here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.space import Assignment
from autocompress.results.metric import Measurement
from autocompress.results.screened import Screened
from autocompress.results.trial import Phase, Trial


@runtime_checkable
class Evaluator(Protocol):
    """Tells what a policy costs and how good it is."""

    @property
    def baseline(self) -> Measurement:
        """The uncompressed model, measured on val in the target runtime."""

    def estimate(self, policy: Policy) -> Measurement:
        """Predicted cost in microseconds, no model built.

        ``values`` holds ``macs``, ``params``, ``size_bytes`` and ``latency_ms``;
        ``spread["latency_ms"]`` is one standard deviation of the prediction's error.
        """

    def screen(self, policy: Policy, images: int) -> Screened:
        """KL to the uncompressed model on the first ``images`` screening inputs, zero-shot."""

    def evaluate(self, policy: Policy, phase: Phase, seed: int) -> Measurement:
        """Build, export, measure. Quality on val, or on test in the ``verify`` phase."""

    def observe(self, trial: Trial) -> None:
        """Learn from a complete trial, so that later estimates are better.

        The ledger calls it once per complete trial, wherever that was evaluated; trials of earlier
        sessions come first.
        """


class NearEvaluator(Evaluator, Protocol):
    """An evaluator that estimates small changes of a policy quickly.

    A solver asks what every level of every choice would change. Whole estimates take as long as
    the network has layers, so that those of all choices take the square of that.
    """

    def estimate_changes(
        self, policy: Policy
    ) -> Callable[[Mapping[str, LayerPolicy]], Measurement]:
        """Estimates of policies that differ from one in a few layers.

        Args:
            policy: to start from; no student.

        Returns:
            From what is done to some layers instead to what ``estimate`` would give.
        """


class TrainingEvaluator(Evaluator, Protocol):
    """An evaluator that knows how long training takes, so that it can be planned."""

    def epoch_s(self, policy: Policy, seconds: float) -> float:
        """Seconds of one epoch of training a policy's model here, from a few steps.

        Args:
            policy: that is to be trained.
            seconds: that looking may take, about.
        """


class SeveralEvaluator(Evaluator, Protocol):
    """An evaluator that screens many policies in about the time of one."""

    def screen_all(self, policies: Sequence[Policy], images: int) -> list[Screened | None]:
        """``screen`` of each; ``None`` for one that is to be asked about alone."""


class DividedEvaluator(Evaluator, Protocol):
    """An evaluator whose work can be divided: workers score, one process times."""

    def score(self, policy: Policy, phase: Phase, seed: int) -> Any:
        """All of an evaluation but the time of the exported file; picklable.

        For workers: what else they do at the same time changes nothing of it.
        """

    def files(self, policy: Policy, phase: Phase, seed: int) -> list[Path]:
        """What ``score`` writes and later steps read, for workers on other machines."""

    def timed(self, scored: Sequence[Any]) -> list[Measurement]:
        """Complete what ``score`` found, on the machine that has the target, while it is quiet."""


@dataclass(frozen=True, slots=True)
class Job:
    """One evaluation to carry out.

    ``limit_s`` are seconds after which it is given up; ``None`` waits for ever. ``last`` tells that
    they are what is left of the study's time.
    """

    number: int
    policy: Policy
    phase: Phase
    seed: int
    origin: str = ""
    parent: int | None = None
    limit_s: float | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job.

    Args:
        job: that was carried out.
        measurement: of it.
        error: text of the exception.
        seconds: that it took.
        scored: what waits to be timed.
        full: of a disk; no other job could be carried out either.
    """

    job: Job
    measurement: Measurement | None
    error: str = ""
    seconds: float = 0.0
    scored: Any = None
    full: OSError | None = None


class Executor(Protocol):
    """Carries jobs out, here or elsewhere."""

    @property
    def slots(self) -> int:
        """How many jobs may be under way at once."""

    def submit(self, job: Job) -> None:
        """Start a job, or queue it."""

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The next finished job, or ``None`` when the time is over first.

        A job whose worker died comes back with ``error``.
        """

    def close(self, *, cancel: bool = False) -> None:
        """Free everything; with ``cancel``, without waiting for running jobs."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A policy to try next.

    Args:
        origin: which method it comes from (``uniform``, ``solver``, ``tpe``, ...); recorded.
        assignment: one level per choice of the space.
        parent: number of the trial that it is a variation of, if any.
    """

    origin: str
    assignment: Assignment
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of a proposal, or of a trial of an earlier session.

    Args:
        assignment: as proposed; ``None`` for a policy that lies outside the space.
        trial: in any state. A duplicate that is not recorded has the number -1.
    """

    assignment: Assignment | None
    trial: Trial


class Proposer(Protocol):
    """Chooses what to evaluate next: a sampler of ours, or of a plug-in."""

    def suggest(self, n: int) -> list[Proposal]:
        """The next proposals, the most urgent first.

        Args:
            n: how many can be evaluated at once, at least 1.

        Returns:
            At most ``n``; none where nothing is left to propose, which ends the search. A repeated
            proposal costs no evaluation: the loop answers it with a ``DUPLICATE``.
        """

    def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
        """Learn what came of proposals.

        Args:
            completed: settled since the last call; their order must not matter.
            active: proposals that are being evaluated.
        """


class Sink(Protocol):
    """Keeps trials."""

    def record(self, trial: Trial) -> None:
        """Keep a finished trial; returns when it is safe."""

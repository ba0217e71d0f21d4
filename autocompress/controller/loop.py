"""The one loop: ask, estimate, reject or submit, wait, tell, record. Until told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from autocompress.controller.config import SearchConfig
from autocompress.controller.protocols import Evaluator, Executor, Job, Outcome, Sink
from autocompress.controller.stop import StopFlag
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy
from autocompress.policy.space import Assignment, Space
from autocompress.results.front import ParetoFront, reference_point
from autocompress.results.metric import Measurement, metric
from autocompress.results.screened import Screened
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState, confirmed, waiting_share

_HOPELESS = 3.0
"""Rejected without a measurement when this many sigmas under the estimate are over the budget."""

SURE = 1.64
"""Standard deviations of a one-sided 95 % bound."""

_REPEATS = 200
"""Proposals in a row that are settled already before a study counts as exhausted."""


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """What a progress display shows after every trial.

    Args:
        phase: ``search``, ``baselines``, ``finish``, ``recover`` or ``verify``.
        done, total: trials of the phase; ``total`` is ``None`` where the clock decides.
        best_accuracy: of the feasible trials, or ``None``.
        hypervolume: of the feasible front.
        seconds_left: of the phase, or ``None``.
        waiting: share of the evaluations' time in which timing waited for a quiet machine.
        trial: the one that was just finished.
    """

    phase: str
    done: int
    total: int | None
    best_accuracy: float | None
    hypervolume: float
    seconds_left: float | None
    waiting: float = 0.0
    trial: Trial | None = None


ProgressCallback = Callable[[SearchProgress], None]


class Proposer(Protocol):
    """Chooses what to evaluate next."""

    def propose(self, trials: Sequence[Trial]) -> tuple[str, Assignment] | None:
        """An origin and an assignment; ``None`` when there is nothing left to try."""

    def tell(self, assignment: Assignment | None, trial: Trial) -> None:
        """What came of it."""


@dataclass
class Context:
    """What all phases of a study share.

    Args:
        space, evaluator, executor, budget, config: of the study.
        sinks: told of every finished trial, at once.
        trials: all finished trials, earlier sessions included; grows.
        stop: raised by Ctrl-C.
        progress: told after every trial.
        screened: what screening gave so far, by untrained digest and number of images; grows.
    """

    space: Space
    evaluator: Evaluator
    executor: Executor
    budget: Budget
    config: SearchConfig
    sinks: Sequence[Sink]
    trials: list[Trial] = field(default_factory=list)
    stop: StopFlag = field(default_factory=StopFlag)
    progress: ProgressCallback | None = None
    screened: MutableMapping[tuple[str, int], Screened] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objectives = tuple(metric(n) for n in self.config.objectives)
        self.cost = self.config.objectives[1] if len(self.objectives) > 1 else "macs"
        self.screening_s = 0.0
        for trial in self.trials:
            self.evaluator.observe(trial)
        self._next = max((t.number for t in self.trials), default=-1) + 1
        self._digests = {
            self._key(t.policy, t.phase): t
            for t in self.trials
            if t.state in (TrialState.COMPLETE, TrialState.REJECTED)
        }

    def number(self) -> int:
        """The next trial number."""
        self._next += 1
        return self._next - 1

    @staticmethod
    def _key(policy: Policy, phase: Phase) -> tuple[str, Phase]:
        # distillation changes nothing before any training
        return (policy.untrained_digest if phase.kind == "search" else policy.digest, phase)

    def known(self, policy: Policy, phase: Phase = SEARCH) -> Trial | None:
        """The trial that has settled a policy at this phase already."""
        return self._digests.get(self._key(policy, phase))

    def screen(self, assignment: Assignment, images: int | None = None) -> Screened:
        """Screen an assignment; the time counts as evaluation, not as bookkeeping."""
        start = time.monotonic()
        try:
            policy, images = self.space.decode(assignment), images or self.config.screen_images
            key = (policy.untrained_digest, images)
            if key not in self.screened:
                self.screened[key] = self.evaluator.screen(policy, images)
            return self.screened[key]
        finally:
            self.screening_s += time.monotonic() - start

    def estimate(self, assignment: Assignment) -> Measurement:
        """Costs that the evaluator foretells for an assignment."""
        return self.evaluator.estimate(self.space.decode(assignment))

    def hopeless(self, estimate: Measurement) -> dict[str, float] | None:
        """Violations if even an optimistic reading of an estimate is over the budget.

        The estimate's error is taken off in the policy's favour: what might fit is measured.
        """
        names = [m for m in self.budget.metrics if m in estimate]
        values = {n: estimate[n] - _HOPELESS * estimate.spread.get(n, 0.0) for n in names}
        limits = Budget(*(limit for limit in self.budget.limits if limit.metric in names))
        found = limits.violations(values, self.evaluator.baseline.values)
        return found if any(v > 0 for v in found.values()) else None

    def likely(self, estimate: Measurement) -> bool:
        """Whether an estimate with 1.64 sigma on top (95 %, one-sided) is within the budget."""
        names = [m for m in self.budget.metrics if m in estimate]
        values = {n: estimate[n] + SURE * estimate.spread.get(n, 0.0) for n in names}
        limits = Budget(*(limit for limit in self.budget.limits if limit.metric in names))
        found = limits.violations(values, self.evaluator.baseline.values)
        return all(v <= 0 for v in found.values())

    def finish(self, outcome: Outcome) -> Trial:
        """Turn an outcome into a trial, keep it, and say so."""
        job = outcome.job
        trial = Trial(
            job.number,
            job.policy,
            job.phase,
            TrialState.FAILED,
            job.origin,
            reason=outcome.error,
            seed=job.seed,
            seconds=outcome.seconds,
            parent=job.parent,
        )
        if outcome.measurement is not None:
            violations = self.budget.violations(
                outcome.measurement.values, self.evaluator.baseline.values
            )
            trial = replace(
                trial,
                state=TrialState.COMPLETE,
                measurement=outcome.measurement,
                violations=violations,
            )
        return self.keep(trial)

    def keep(self, trial: Trial) -> Trial:
        """Record a finished trial everywhere."""
        self.trials.append(trial)
        if trial.state in (TrialState.COMPLETE, TrialState.REJECTED):
            self._digests.setdefault(self._key(trial.policy, trial.phase), trial)
        for sink in self.sinks:
            sink.record(trial)
        self.evaluator.observe(trial)
        return trial

    def scored(self) -> list[Trial]:
        """What was scored on val; what verification found over the budget is over it."""
        return [t for t in confirmed(self.trials) if t.phase.kind != "verify"]

    def front(self) -> ParetoFront:
        """The front of what was scored on val."""
        return ParetoFront.of(self.scored(), self.objectives)

    def report(
        self, phase: str, done: int, total: int | None, left: float | None, trial: Trial | None
    ) -> None:
        """Tell the progress display."""
        if self.progress is None:
            return
        front = self.front()
        reference = reference_point(self.evaluator.baseline, self.objectives)
        best = max((t.measurement["accuracy"] for t in front if t.measurement), default=None)
        volume, waiting = front.hypervolume(reference), waiting_share(self.trials)
        self.progress(SearchProgress(phase, done, total, best, volume, left, waiting, trial))

    def run_jobs(self, jobs: Iterable[Job], phase: str) -> list[Trial]:
        """Evaluate some jobs, as many at once as there is room for; stops when asked to."""
        queue = list(jobs)
        total, done, running = len(queue), [], 0
        while queue or running:
            while queue and running < self.executor.slots and not self.stop:
                self.executor.submit(queue.pop(0))
                running += 1
            if not running:
                break
            outcome = self.executor.wait(1.0)
            if outcome is None:
                continue
            running -= 1
            done.append(self.finish(outcome))
            self.report(phase, len(done), total, None, done[-1])
        return done


StopReason = Literal["trials", "timeout", "interrupted", "exhausted", "rejections"]


@dataclass
class SearchResult:
    """What the search phase left.

    Args:
        trials: all finished ones, earlier sessions included.
        stopped: why it ended: ``trials``, ``timeout``, ``interrupted``, ``exhausted`` (nothing new
            to propose), ``rejections`` (``max_rejections`` in a row were over the budget).
        seconds: of this session's search phase.
        bookkeeping_s: of them, spent on choosing and recording rather than on evaluating or
            screening.
    """

    trials: list[Trial]
    stopped: StopReason
    seconds: float
    bookkeeping_s: float


def run_search(context: Context, proposer: Proposer) -> SearchResult:
    """The search phase: proposals, one after another or several at once.

    Args:
        context: of the study; its trials of earlier sessions are told to the proposer first.
        proposer: chooses; see ``guided`` and ``plain``.
    """
    loop = _Loop(context, proposer)
    for trial in context.trials:
        if trial.phase == SEARCH:
            proposer.tell(context.space.encode(trial.policy), trial)
    return loop.run()


class _Loop:
    def __init__(self, context: Context, proposer: Proposer) -> None:
        self.context = context
        self.proposer = proposer
        self.assignments: dict[int, Assignment] = {}
        self.submitted: set[Any] = set()
        self.running = 0
        self.started = time.monotonic()
        self.waited = 0.0
        self.screened_before = context.screening_s
        self.repeats = 0
        self.rejections = 0
        self.done = sum(
            t.phase == SEARCH and t.state in (TrialState.COMPLETE, TrialState.FAILED)
            for t in context.trials
        )

    def run(self) -> SearchResult:
        reason: StopReason | None = None
        while True:
            reason = reason or self._why_stop()
            while reason is None and self.running < self.context.executor.slots:
                reason = self._start_one() or self._why_stop()
            if reason is not None and self.running == 0:
                break
            self._take_one()
        seconds = time.monotonic() - self.started
        elsewhere = self.waited + self.context.screening_s - self.screened_before
        return SearchResult(list(self.context.trials), reason, seconds, seconds - elsewhere)

    def _why_stop(self) -> StopReason | None:
        config = self.context.config
        if self.context.stop:
            return "interrupted"
        if config.trials is not None and self.done + self.running >= config.trials:
            return "trials"
        if self._left() == 0:
            return "timeout"
        return None

    def _left(self) -> float | None:
        timeout = self.context.config.timeout_s
        if timeout is None:
            return None
        return max(0.0, timeout - (time.monotonic() - self.started))

    def _start_one(self) -> StopReason | None:
        """Submit the next proposal that is new and not hopeless; if none comes, say why."""
        while not self._why_stop():
            if self._too_many_rejections():
                return "rejections"
            proposal = self.proposer.propose(self.context.trials)
            if proposal is None or self.repeats > _REPEATS:
                return "exhausted"
            origin, levels = proposal
            policy = self.context.space.decode(levels)
            if self.context.known(policy) or policy.untrained_digest in self.submitted:
                self._repeat(origin, levels, policy)
                continue
            start = time.monotonic()
            estimate = self.context.evaluator.estimate(policy)
            self.waited += time.monotonic() - start
            violations = self.context.hopeless(estimate)
            if violations is not None:
                self._reject(origin, levels, policy, estimate, violations)
                continue
            self.repeats = self.rejections = 0
            self._submit(origin, levels, policy)
            break
        return None

    def _too_many_rejections(self) -> bool:
        most = self.context.config.max_rejections
        return most is not None and self.rejections >= most

    def _submit(self, origin: str, levels: Assignment, policy: Policy) -> None:
        number = self.context.number()
        self.assignments[number] = levels
        self.submitted.add(policy.untrained_digest)
        start = time.monotonic()
        self.context.executor.submit(Job(number, policy, SEARCH, self.context.config.seed, origin))
        self.waited += time.monotonic() - start
        self.running += 1

    def _repeat(self, origin: str, levels: Assignment, policy: Policy) -> None:
        """A proposal that is settled already costs nothing; the first of a row is recorded."""
        before = self.context.known(policy)
        rejected = before is not None and before.state is TrialState.REJECTED
        trial = Trial(
            -1,
            policy,
            SEARCH,
            TrialState.DUPLICATE,
            origin,
            measurement=before.measurement if before else None,
            violations=before.violations if before else {},
            parent=before.number if before else None,
            reason="rejected before" if rejected else "evaluated before",
        )
        if self.repeats == 0:
            trial = self.context.keep(replace(trial, number=self.context.number()))
        self.repeats += 1
        self.proposer.tell(levels, trial)

    def _reject(
        self,
        origin: str,
        levels: Assignment,
        policy: Policy,
        estimate: Measurement,
        violations: dict[str, float],
    ) -> None:
        worst = max(violations, key=lambda n: violations[n])
        trial = Trial(
            self.context.number(),
            policy,
            SEARCH,
            TrialState.REJECTED,
            origin,
            estimate,
            violations,
            f"its estimated {worst} is {violations[worst]:.0%} over the "
            "budget even if the estimate errs in its favour",
        )
        self.rejections += 1
        self.repeats = 0  # it was new
        self.context.keep(trial)
        self.proposer.tell(levels, trial)

    def _take_one(self) -> None:
        start = time.monotonic()
        outcome = self.context.executor.wait(1.0)
        self.waited += time.monotonic() - start
        if outcome is None:
            return
        self.running -= 1
        self.done += 1
        trial = self.context.finish(outcome)
        self.proposer.tell(self.assignments.pop(trial.number), trial)
        self.context.report("search", self.done, self.context.config.trials, self._left(), trial)

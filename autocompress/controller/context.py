"""What all phases of a study share, and how they have jobs carried out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import InitVar, dataclass, field, replace

from autocompress.controller.config import SearchConfig
from autocompress.controller.feasibility import Feasibility
from autocompress.controller.ledger import Ledger
from autocompress.controller.near import estimates_near
from autocompress.controller.progress import ProgressCallback, SearchProgress
from autocompress.controller.protocols import Evaluator, Executor, Job, Outcome, Sink
from autocompress.controller.screener import Screener
from autocompress.controller.shared_trials import SharedTrials
from autocompress.controller.stop import StopFlag
from autocompress.controller.time_budget import TimeBudget
from autocompress.controller.warm import WarmStart
from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy
from autocompress.policy.space import Assignment, Space
from autocompress.results.front import reference_point
from autocompress.results.metric import Measurement, objectives
from autocompress.results.screened import Screened
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState


@dataclass
class Context:
    """The parts of a study, bundled: ``ledger``, ``screener`` and ``feasibility`` among them.

    Args:
        space, evaluator, executor, config: of the study.
        budget: judged by ``feasibility``.
        sinks, earlier: of the ledger; ``earlier`` are the trials of earlier sessions.
        stop: raised by Ctrl-C.
        progress: told after every trial.
        screened: of the screener: what earlier sessions screened.
        shared: trials of several drivers, where there are some.
        time: of the whole study.
        warm: what the search takes over from an earlier run.
    """

    space: Space
    evaluator: Evaluator
    executor: Executor
    budget: InitVar[Budget]
    config: SearchConfig
    sinks: InitVar[Sequence[Sink]] = ()
    earlier: InitVar[Sequence[Trial]] = ()
    stop: StopFlag = field(default_factory=StopFlag)
    progress: ProgressCallback | None = None
    screened: InitVar[MutableMapping[tuple[str, int], Screened] | None] = None
    shared: SharedTrials | None = None
    time: TimeBudget = field(default_factory=TimeBudget)
    warm: WarmStart = field(default_factory=WarmStart)

    search_ends: float | None = None
    """When the search's time is over, on the monotonic clock; ``None`` leaves it open."""

    def __post_init__(
        self,
        budget: Budget,
        sinks: Sequence[Sink],
        earlier: Sequence[Trial],
        screened: MutableMapping[tuple[str, int], Screened] | None,
    ) -> None:
        self.objectives = objectives(self.config.objectives, self.evaluator.baseline.metrics)
        self.cost = self.config.objectives[1] if len(self.objectives) > 1 else "macs"
        self.ledger = Ledger(self.objectives, sinks, self.evaluator.observe, earlier)
        self.screener = Screener(self.space, self.evaluator, self.config.screen_images, screened)
        self.feasibility = Feasibility(budget, self.evaluator.baseline)

    def estimate(self, assignment: Assignment) -> Measurement:
        """Costs that the evaluator predicts for an assignment."""
        return self.evaluator.estimate(self.space.decode(assignment))

    def estimates_near(self, assignment: Assignment) -> Callable[[int, int], Measurement]:
        """The same for assignments that differ in one choice, by its place and a level."""
        return estimates_near(self.space, self.evaluator, assignment)

    def seconds_left(self) -> float | None:
        """Of the search's time; ``None`` where it has no end."""
        left = self.time.search_s(2 + self.config.random_references, self.ledger.durations)
        if self.search_ends is not None:
            left = min(left, self.search_ends - time.monotonic())
        return None if math.isinf(left) else max(0.0, left)

    @property
    def may_go_on(self) -> bool:
        """Whether long work is worth going on with: nobody stopped it, and time is left."""
        return not self.stop and self.seconds_left() != 0

    def limit_s(self, phase: Phase) -> float:
        """Seconds that an evaluation may take."""
        return min(self._own_limit_s(phase), self.time.limit_s(self.ledger.durations))

    def _own_limit_s(self, phase: Phase) -> float:
        """The same, whatever is left of the study's time."""
        return self.ledger.durations.limit_s(self.config.trial_timeout_s, phase)

    def submit(self, job: Job) -> None:
        """Hand a job to the executor, with the time that it may take."""
        limit = self.limit_s(job.phase)
        last = limit < self._own_limit_s(job.phase)
        self.executor.submit(replace(job, limit_s=limit, last=last))

    def claim(self, policy: Policy, assignment: Assignment) -> bool:
        """Whether no other driver of the study has a policy, which this one has from now on."""
        limit = self.limit_s(SEARCH) * self.executor.slots
        return self.shared is None or self.shared.claim(policy, assignment, limit)

    def news(self) -> list[Trial]:
        """Trials that other drivers have evaluated, now among this one's."""
        found = [] if self.shared is None else self.shared.news(self._beside_own_baseline)
        return [
            self.ledger.keep(replace(trial, number=self.ledger.number()))
            for trial in found
            if self.ledger.known(trial.policy) is None
        ]

    def _beside_own_baseline(self, trial: Trial) -> Trial:
        """A trial of another driver: the ratio it timed, in milliseconds of this one's baseline.

        Raises:
            InputError: nothing was measured that this study could judge it by.
        """
        found, base = trial.measurement, self.feasibility.baseline
        if found is None or found.metrics != base.metrics:
            raise InputError("it is measured by other metrics")
        ratio = found.timing.ratio
        if ratio is not None:
            if not ratio > 0:
                raise InputError(f"its latency's ratio is {ratio}")
            ms = ratio * base["latency_ms"]
            found = replace(found, values={**found.values, "latency_ms": ms})
        over = self.feasibility.violations(found.values)
        return replace(trial, measurement=found, violations=over)

    def end(self, outcome: Outcome) -> Trial:
        """Turn an outcome into a trial, and hand it to the ledger.

        Raises:
            OSError: a disk is full, which is no policy's fault and ends the study.
        """
        if outcome.full is not None:
            raise outcome.full
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
            trial = replace(
                trial,
                state=TrialState.COMPLETE,
                measurement=self._beside_estimate(outcome.measurement, job),
                violations=self.feasibility.violations(outcome.measurement.values),
            )
        return self.ledger.keep(trial)

    def _beside_estimate(self, found: Measurement, job: Job) -> Measurement:
        """With the latency that was expected: told now, before this trial teaches the estimator."""
        if job.phase != SEARCH or "latency_ms" not in found:
            return found
        estimate = self.evaluator.estimate(job.policy)
        if "latency_ms" not in estimate:
            return found
        sigma = estimate.spread.get("latency_ms", 0.0)
        expected = {"latency_ms": estimate["latency_ms"], "sigma_ms": sigma}
        return replace(found, context={**found.context, "expected": expected})

    def report(
        self, phase: str, done: int, total: int | None, left: float | None, trial: Trial | None
    ) -> None:
        """Tell the progress display; of the time left, that of the whole study where it has one."""
        if self.progress is None:
            return
        if self.time.total_s is not None:
            left = max(0.0, self.time.left_s)
        front = self.ledger.front()
        reference = reference_point(self.feasibility.baseline, self.objectives)
        quality = self.feasibility.baseline.quality
        scores = (t.measurement.score for t in front if t.measurement)
        best = min(scores, key=quality.loss, default=None)
        volume, waiting = front.hypervolume(reference), self.ledger.waiting.share
        self.progress(
            SearchProgress(phase, done, total, best, volume, left, waiting, trial, quality)
        )

    def run_jobs(
        self,
        jobs: Iterable[Job],
        phase: str,
        refined: Callable[[Job], bool] = lambda job: False,
    ) -> list[Trial]:
        """Evaluate some jobs, as many at once as there is room for; stops when asked to.

        One that would not end within the study's time is left out. What training takes of it was
        seen to before; see ``fit_recovery``.

        Args:
            jobs: to evaluate.
            phase: that asks for them.
            refined: whether the thorough reconstruction of a job's policy is still to be done.
        """
        queue = list(jobs)
        total, done, running = len(queue), [], 0
        while queue or running:
            while queue and running < self.executor.slots and not self.stop:
                job = queue.pop(0)
                durations = self.ledger.durations
                if self.time.fits(phase, job.phase, durations, refined=refined(job)):
                    self.submit(job)
                    running += 1
                else:
                    total -= 1
            if not running:
                break
            outcome = self.executor.wait(1.0)
            if outcome is None:
                continue
            running -= 1
            done.append(self.end(outcome))
            self.report(phase, len(done), total, None, done[-1])
        return done

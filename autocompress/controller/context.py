"""What all phases of a study share, and how they have jobs carried out."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import InitVar, dataclass, field, replace

from autocompress.controller.config import SearchConfig
from autocompress.controller.feasibility import Feasibility
from autocompress.controller.ledger import Ledger
from autocompress.controller.progress import ProgressCallback, SearchProgress
from autocompress.controller.protocols import Evaluator, Executor, Job, Outcome, Sink
from autocompress.controller.screener import Screener
from autocompress.controller.stop import StopFlag
from autocompress.policy.budget import Budget
from autocompress.policy.space import Assignment, Space
from autocompress.results.front import reference_point
from autocompress.results.metric import Measurement, objectives
from autocompress.results.screened import Screened
from autocompress.results.trial import Trial, TrialState, waiting_share


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

    def finish(self, outcome: Outcome) -> Trial:
        """Turn an outcome into a trial, and hand it to the ledger."""
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
                measurement=outcome.measurement,
                violations=self.feasibility.violations(outcome.measurement.values),
            )
        return self.ledger.keep(trial)

    def report(
        self, phase: str, done: int, total: int | None, left: float | None, trial: Trial | None
    ) -> None:
        """Tell the progress display."""
        if self.progress is None:
            return
        front = self.ledger.front()
        reference = reference_point(self.feasibility.baseline, self.objectives)
        quality = self.feasibility.baseline.quality
        scores = (t.measurement.score for t in front if t.measurement)
        best = min(scores, key=quality.loss, default=None)
        volume, waiting = front.hypervolume(reference), waiting_share(self.ledger.trials)
        self.progress(
            SearchProgress(phase, done, total, best, volume, left, waiting, trial, quality)
        )

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

"""The ledger: every finished trial of a study, and the one door that a trial enters by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autocompress.controller.limits import Durations
from autocompress.controller.protocols import Sink
from autocompress.policy.policy import Policy
from autocompress.results.answer import comparable
from autocompress.results.front import ParetoFront
from autocompress.results.metric import Metric
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState, Waiting, confirmed


class Ledger:
    """Numbers trials, keeps them, and knows which policies are settled.

    Args:
        objectives: of the front.
        sinks: told of every finished trial, at once.
        observe: taught by every complete trial, those of earlier sessions first.
        earlier: finished trials of earlier sessions.

    Attributes:
        trials: all of them, in the order in which they came.
        durations: of the evaluations.
        waiting: how much of them timing has waited.
    """

    def __init__(
        self,
        objectives: Sequence[Metric],
        sinks: Sequence[Sink] = (),
        observe: Callable[[Trial], None] | None = None,
        earlier: Sequence[Trial] = (),
    ) -> None:
        self.objectives = tuple(objectives)
        self.sinks = sinks
        self.trials: list[Trial] = []
        self.durations, self.waiting = Durations(), Waiting()
        self._front = GrowingFront(self)
        self._observe = observe
        self._settled: dict[tuple[str, Phase], Trial] = {}
        self._next = max((t.number for t in earlier), default=-1) + 1
        for trial in earlier:
            self._enter(trial)
            self._teach(trial)

    def number(self) -> int:
        """The next trial number."""
        self._next += 1
        return self._next - 1

    def known(self, policy: Policy, phase: Phase = SEARCH) -> Trial | None:
        """The trial that has settled a policy at this phase already."""
        return self._settled.get(self._key(policy, phase))

    def keep(self, trial: Trial) -> Trial:
        """Take a finished trial: remember it, record it in every sink, teach the estimator."""
        self._enter(trial)
        for sink in self.sinks:
            sink.record(trial)
        self._teach(trial)
        return trial

    def _enter(self, trial: Trial) -> None:
        if trial.phase.kind == "cascade":  # made of trials that are here already
            return
        self.trials.append(trial)
        self.durations.add(trial)
        self.waiting.add(trial)
        if trial.state in (TrialState.COMPLETE, TrialState.REJECTED):
            self._settled.setdefault(self._key(trial.policy, trial.phase), trial)

    def _teach(self, trial: Trial) -> None:
        # a rejected trial holds an estimate, and a duplicate what another trial has taught
        taught = trial.state is TrialState.COMPLETE and trial.phase.kind != "cascade"
        if taught and self._observe is not None:
            self._observe(trial)

    @staticmethod
    def _key(policy: Policy, phase: Phase) -> tuple[str, Phase]:
        # distillation changes nothing before any training
        return (policy.untrained_digest if phase.kind == "search" else policy.digest, phase)

    def scored(self) -> list[Trial]:
        """What can be compared; what verification found over the budget is over it."""
        return [t for t in confirmed(self.trials) if comparable(t, self.objectives)]

    def front(self) -> ParetoFront:
        """The front of what was scored on val."""
        return self._front()


class GrowingFront:
    """The front of a ledger's trials, found from what is new as long as that is enough.

    Args:
        ledger: of the trials.
        counts: whether a trial may be on the front; all that are scored by default.
    """

    def __init__(self, ledger: Ledger, counts: Callable[[Trial], bool] | None = None) -> None:
        self._ledger = ledger
        self._counts = counts or (lambda trial: True)
        self._front = ParetoFront.of([], ledger.objectives)
        self._seen = 0

    def __call__(self) -> ParetoFront:
        """As it is by now."""
        new = self._ledger.trials[self._seen :]
        self._seen = len(self._ledger.trials)
        if any(t.phase != SEARCH for t in new):
            # what verifying an answer found may take others off the front
            counting = filter(self._counts, self._ledger.scored())
            self._front = ParetoFront.of(counting, self._ledger.objectives)
        else:
            for trial in filter(self._counts, new):
                self._front = self._front.with_trial(trial)
        return self._front

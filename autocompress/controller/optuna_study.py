"""The controller: one Optuna study that knows every trial, whoever proposed it.

The study lives in memory (the journal is what is kept), and
forgets the oldest trials off the front once there are many, so that asking stays quick.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError
from autocompress.policy.space import Assignment, Space
from autocompress.results.front import ParetoFront
from autocompress.results.metric import Measurement, Metric
from autocompress.results.trial import Trial, TrialState

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler as BaseSampler

_REMEMBERED = (100, 400)
"""Trials kept when the study is started over, fewer where there are many choices: the time that
TPE takes for an answer grows with their product."""
_REMEMBERED_VALUES = 20_000
_SEED_STEP = 1_000_003
"""Between the seeds of restarts; larger than the seeds that people give to neighbouring studies."""
_GP_PARAMETERS = 15
_GP_TRIALS = 200


def trial_state(name: str) -> Any:
    """One of Optuna's states of a trial."""
    import optuna

    return optuna.trial.TrialState[name]


def is_optuna_sampler(found: object) -> bool:
    """Whether an object is one of Optuna's samplers, or derived from one."""
    import optuna

    return isinstance(found, optuna.samplers.BaseSampler)


class OptunaController:
    """Asks an Optuna sampler for assignments and tells it what came of them.

    Args:
        space: parameters are level indices, named after the choices.
        objectives: each told with its own direction.
        sampler: ``tpe``, ``nsga2``, ``gp`` or ``random``, or any sampler of Optuna's as an object.
            It has a seed of its own and is never started over. One that reads constraints (upper
            bounds of 0) gets them. One that takes a single objective only is told a score to
            maximize instead: quality (the more the better, in tenths of what makes a model useless,
            see ``Metric.useless``; accuracy as it is) less what is over the budget, as shares added
            up.
        seed: of a sampler by name.
        trials: planned; only ``gp`` cares.
        baseline: the uncompressed model; what a quality is worth is told from it.

    Raises:
        InputError: ``gp`` on a space or a number of trials that it cannot afford.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Metric],
        sampler: str | BaseSampler,
        seed: int,
        trials: int | None = None,
        baseline: Measurement | None = None,
    ) -> None:
        import optuna

        self.space = space
        self.objectives = tuple(objectives)
        self.sampler = sampler
        self.seed = seed
        self._worth, self._worst = _worth(self.objectives[0], baseline)
        if sampler == "gp" and (len(space.choices) > _GP_PARAMETERS or (trials or 0) > _GP_TRIALS):
            raise InputError(
                f"The sampler `gp` takes minutes per trial beyond {_GP_PARAMETERS} "
                f"choices or {_GP_TRIALS} trials; this study has "
                f"{len(space.choices)} choices and {trials} trials. Use `guided` or "
                "`tpe`."
            )
        self._told: list[optuna.trial.FrozenTrial] = []
        self._sources: list[Trial] = []
        self._pending: dict[Assignment, list[optuna.trial.Trial]] = {}
        self._generation = 0
        self._restarts = 0
        few, many = _REMEMBERED
        self._remembered = max(few, min(many, _REMEMBERED_VALUES // max(1, len(space.choices))))
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            c.name: optuna.distributions.IntDistribution(0, len(c.levels) - 1)
            for c in space.choices
            if not c.replaces
        }
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        first = self._made()
        self._scored = not isinstance(sampler, str) and self._takes_one_objective(first)
        # a genetic sampler sees added trials only as members of a generation
        genetic = (optuna.samplers.NSGAIISampler, optuna.samplers.NSGAIIISampler)
        self._generation_key = (
            f"{type(first).__name__}:generation" if isinstance(first, genetic) else None
        )
        self._study = self._new_study(first)

    def ask(self) -> Assignment:
        """The sampler's next proposal; it may repeat an earlier one."""
        levels, trial = self._asked()
        self._pending.setdefault(levels, []).append(trial)
        return levels

    def candidate(self) -> Assignment:
        """A proposal that is one of several, of which most are never evaluated.

        The sampler knows nothing of it until it hears of a trial: whatever an Optuna study waits
        for is looked through at each proposal.
        """
        levels, trial = self._asked()
        self._study.tell(trial, state=trial_state("FAIL"))
        return levels

    def _asked(self) -> tuple[Assignment, optuna.trial.Trial]:
        trial = self._study.ask()
        # students are tried once each, before it is asked: untrained they teach the sampler nothing
        levels = tuple(
            0 if c.replaces else trial.suggest_int(c.name, 0, len(c.levels) - 1)
            for c in self.space.choices
        )
        return levels, trial

    def tell(self, assignment: Assignment | None, trial: Trial) -> None:
        """What came of an assignment, asked for here or proposed by somebody else.

        Args:
            assignment: ``None`` for a policy outside the space, which teaches nothing.
            trial: over the budget by estimate (``REJECTED``) it is told as pruned with its
                constraints, except to samplers that learn from complete trials only (NSGA-II, and
                those of one objective): they are given the estimate with the worst quality.
        """
        if assignment is None:
            return
        waiting = self._pending.get(assignment)
        asked = waiting.pop() if waiting else None
        frozen = self._freeze(assignment, trial)
        if asked is not None:
            frozen = self._close(asked, frozen)
        elif frozen is not None:
            self._study.add_trial(frozen)
        if frozen is None:
            return
        self._told.append(frozen)
        self._sources.append(trial)
        self._generation = max(
            self._generation, frozen.system_attrs.get(self._generation_key or "", 0)
        )
        if isinstance(self.sampler, str) and len(self._told) >= 2 * self._remembered:
            self._forget()

    def _close(
        self, asked: optuna.trial.Trial, frozen: optuna.trial.FrozenTrial | None
    ) -> optuna.trial.FrozenTrial | None:
        """Give an asked trial what was found; what taught nothing is told as failed."""
        if frozen is None:
            self._study.tell(asked, state=trial_state("FAIL"))
            return None
        for name, violation in frozen.constraints.items():
            asked.set_constraint(name, violation)
        return self._study.tell(asked, frozen.values, state=frozen.state)

    def _freeze(self, assignment: Assignment, trial: Trial) -> optuna.trial.FrozenTrial | None:
        import optuna

        measured = trial.measurement
        if measured is None or trial.state in (TrialState.FAILED, TrialState.DUPLICATE):
            return None
        if trial.policy.student is not None:
            return None
        rejected = trial.state is TrialState.REJECTED
        if not rejected and any(m.name not in measured for m in self.objectives):
            return None
        quality, *costs = self.objectives
        values = [float(measured.get(quality.name, self._worst))]  # type: ignore[arg-type]  # a default is given
        values += [float(measured.get(m.name, 0.0) or 0.0) for m in costs]
        pruned = rejected and not self._generation_key and not self._scored
        if self._scored:
            over = sum(max(0.0, v) for v in trial.constraints.values())
            values = [-quality.loss(values[0]) / self._worth - over]
        return optuna.trial.create_trial(
            state=trial_state("PRUNED" if pruned else "COMPLETE"),
            values=None if pruned else values,
            params={
                c.name: level
                for c, level in zip(self.space.choices, assignment, strict=True)
                if not c.replaces
            },
            distributions=self._distributions,
            constraints=None if self._scored else trial.constraints or {"none": 0.0},
            system_attrs={self._generation_key: self._generation} if self._generation_key else {},
        )

    def _forget(self) -> None:
        """Keep the front and the latest trials, and start the study over with them.

        A front that is itself long is thinned evenly; otherwise every trial would start it over.
        """
        members = list(ParetoFront.of(self._sources, self.objectives))
        room = self._remembered // 2
        if len(members) > room:
            last = len(members) - 1
            members = [members[i * last // (room - 1)] for i in range(room)]
        front = {t.number for t in members}
        latest = len(self._sources) - self._remembered
        kept = [i for i, t in enumerate(self._sources) if t.number in front or i >= latest]
        self._told = [self._told[i] for i in kept]
        self._sources = [self._sources[i] for i in kept]
        self._restarts += 1
        self._study = self._new_study(self._made())
        self._study.add_trials(self._told)
        self._pending.clear()

    def _made(self) -> BaseSampler:
        import optuna

        if not isinstance(self.sampler, str):
            return self.sampler
        # another one after each restart: the same would propose the same again
        seed = (self.seed + _SEED_STEP * self._restarts) % 2**32
        samplers: dict[str, Callable[[], BaseSampler]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return samplers[self.sampler]()

    def _takes_one_objective(self, sampler: BaseSampler) -> bool:
        """Whether a copy of a sampler refuses a study of two objectives.

        Raises:
            InputError: it cannot sample this space at all.
        """
        import optuna

        two = [optuna.study.StudyDirection.MINIMIZE] * 2
        probe = optuna.create_study(sampler=copy.deepcopy(sampler), directions=two)
        try:
            probe.ask(self._distributions)
        except ValueError as error:
            if "multi-objective" in str(error):
                return True
            raise InputError(
                f"The sampler {sampler} cannot sample this space, whose parameters are integers "
                f"named after its choices ({', '.join(list(self._distributions)[:3])}, ...): "
                f"{error}"
            ) from error
        return False

    def _new_study(self, sampler: BaseSampler) -> optuna.Study:
        import optuna

        if self._scored:
            return optuna.create_study(sampler=sampler, direction="maximize")
        return optuna.create_study(sampler=sampler, directions=[m.goal for m in self.objectives])


def _worth(quality: Metric, baseline: Measurement | None) -> tuple[float, float]:
    """How much quality is worth as much as a limit exceeded by all of it, and the worst.

    For fractions that is all of it, and nothing (or, of an error rate, all).
    """
    if quality.fraction or baseline is None or quality.name not in baseline:
        return 1.0, 0.0 if quality.goal == "maximize" else 1.0
    base = baseline[quality.name]
    worst = quality.useless(base, 10.0)
    return abs(worst - base), worst

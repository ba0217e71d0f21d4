"""Every built-in sampler, and samplers of Optuna's that are handed in, keep the contract."""

from __future__ import annotations

import random
from collections.abc import Sequence

import optuna
import pytest

from autocompress.controller.context import Context
from autocompress.controller.protocols import Proposal, Proposer, Settled
from autocompress.controller.samplers import make_proposer
from autocompress.policy.space import Assignment
from autocompress.results.trial import TrialState
from autocompress.testing.sampler import SamplerContract


class TestGuided(SamplerContract):
    def make(self, context: Context) -> Proposer:
        return make_proposer(context, "guided")


class TestTpe(SamplerContract):
    def make(self, context: Context) -> Proposer:
        return make_proposer(context, "tpe")


class TestNsga2(SamplerContract):
    def make(self, context: Context) -> Proposer:
        return make_proposer(context, "nsga2")


@pytest.mark.slow
class TestGp(SamplerContract):
    steps = 12

    def make(self, context: Context) -> Proposer:
        return make_proposer(context, "gp")


class TestRandom(SamplerContract):
    def make(self, context: Context) -> Proposer:
        return make_proposer(context, "random")


class TestHandedIn(SamplerContract):
    def make(self, context: Context) -> Proposer:
        return make_proposer(context, optuna.samplers.NSGAIIISampler(seed=context.config.seed))


class OneObjective(optuna.samplers.TPESampler):
    """Refuses two objectives, as CMA-ES does, and reads no constraints."""

    def sample_relative(self, study, trial, search_space):  # type: ignore[no-untyped-def]  # Optuna's
        self._raise_error_if_multi_objective(study)
        assert all(t.constraints is None or not t.constraints for t in study.get_trials())
        return super().sample_relative(study, trial, search_space)


class TestHandedInForOneObjective(SamplerContract):
    def make(self, context: Context) -> Proposer:
        return make_proposer(context, OneObjective(seed=context.config.seed, multivariate=True))


class Climb:
    """A neighbour of the best so far: reads trials as ``docs/extending.md`` says, and no more."""

    def __init__(self, context: Context) -> None:
        self.context, self.draws = context, random.Random(context.config.seed)
        self.best: tuple[float, Assignment] | None = None

    def suggest(self, n: int) -> list[Proposal]:
        return [Proposal("climb", self._next()) for _ in range(n)]

    def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
        (quality, *_), found = self.context.objectives, list(filter(None, [self.best]))
        for one in completed:
            if one.assignment is not None and one.trial.state is TrialState.COMPLETE:
                assert one.trial.measurement is not None
                over = sum(max(0.0, v) for v in one.trial.violations.values())
                loss = quality.loss(one.trial.measurement[quality.name])
                found.append((loss + over, one.assignment))
        self.best = min(found, default=None)

    def _next(self) -> Assignment:
        drawn = self.context.space.draw(self.draws)
        if self.best is None:
            return drawn
        place = self.draws.randrange(len(drawn))
        return (*self.best[1][:place], drawn[place], *self.best[1][place + 1 :])


class TestLearning(SamplerContract):
    """A sampler as the author of a package would write it."""

    def make(self, context: Context) -> Proposer:
        return Climb(context)

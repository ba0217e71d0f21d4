"""Every built-in sampler, and samplers of Optuna's that are handed in, keep the contract."""

from __future__ import annotations

import optuna
import pytest

from autocompress.controller.context import Context
from autocompress.controller.protocols import Proposer
from autocompress.controller.samplers import make_proposer
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

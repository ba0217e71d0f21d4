"""What takes long before and between trials looks at the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from analytic import AnalyticEvaluator, make_space

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import run_search
from autocompress.controller.samplers import make_proposer
from autocompress.controller.screener import Screener
from autocompress.execute.local import InProcessExecutor
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy
from autocompress.results.metric import Measurement
from autocompress.results.screened import Screened
from autocompress.results.trial import SEARCH, Phase


@dataclass
class Slow(AnalyticEvaluator):
    """Screening takes its time, some of it for each input."""

    each_s: float = 0.0
    fixed_s: float = 0.0
    before_solver: int = 0

    def evaluate(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Measurement:
        ratios = {policy[f"l{i}"].prune_ratio for i in range(self.layers)}
        if len(ratios) > 1 and not self.before_solver:  # no uniform one: the solver's first
            self.before_solver = self.screened
        return super().evaluate(policy, phase, seed)

    def screen(self, policy: Policy, images: int) -> Screened:
        time.sleep(self.fixed_s + images * self.each_s)
        return super().screen(policy, images)


def study(evaluator: AnalyticEvaluator, layers: int, **config: object) -> Context:
    return Context(
        make_space(layers, 4),
        evaluator,
        InProcessExecutor(evaluator),
        Budget("latency<=0.7x"),
        SearchConfig(**config),  # type: ignore[arg-type]  # fields of any type
    )


def test_probing_takes_a_tenth_of_the_search_at_most() -> None:
    """Two probes of each of 12 layers would take five seconds; the search has ten."""
    evaluator = Slow(12, fixed_s=0.2)
    context = study(evaluator, 12, timeout_s=10.0, trials=None)
    found = run_search(context, make_proposer(context))
    assert found.stopped == "timeout"
    origins = {t.origin for t in found.trials}
    assert "solver" in origins  # what was not probed takes the mean of the rest
    # a second of probes and three that they are tried with; a whole round would be 24
    assert 3 <= evaluator.before_solver <= 1.0 / 0.2 + 5


def test_without_an_end_every_choice_is_probed_on_all_images() -> None:
    evaluator = AnalyticEvaluator(12)
    context = study(evaluator, 12, trials=6)
    run_search(context, make_proposer(context))
    assert context.screener.images == 256
    assert evaluator.screened >= 24


@pytest.mark.parametrize(("seconds", "images"), [(10.0, 256), (0.012, 16), (0.0, 16)])
def test_screening_takes_as_many_images_as_are_affordable(seconds: float, images: int) -> None:
    evaluator = Slow(3, each_s=0.0005)
    screener = Screener(make_space(3, 4), evaluator, 256)
    screener.afford((1, 1, 1), seconds)
    assert screener.images == images


def test_affordable_numbers_are_powers_of_two() -> None:
    evaluator = Slow(3, each_s=0.001)
    screener = Screener(make_space(3, 4), evaluator, 200)
    screener.afford((1, 1, 1), 0.1)
    assert screener.images in (16, 32, 64)

"""Studies on the analytic model, for the tests of the loop and of who proposes."""

from __future__ import annotations

from collections.abc import Sequence

from analytic import AnalyticEvaluator, make_space

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import SearchResult, run_search
from autocompress.controller.samplers import make_proposer
from autocompress.execute.local import InProcessExecutor
from autocompress.policy.budget import Budget
from autocompress.results.trial import Trial

SAMPLERS = ["guided", "tpe", "nsga2", "random"]


class Kept:
    """A sink that remembers, and may die in the middle like a killed process."""

    def __init__(self, most: int | None = None) -> None:
        self.trials: list[Trial] = []
        self.most = most

    def record(self, trial: Trial) -> None:
        self.trials.append(trial)
        if self.most is not None and len(self.trials) >= self.most:
            raise KeyboardInterrupt


def context(
    evaluator: AnalyticEvaluator,
    sampler: str = "guided",
    *,
    trials: int | None = 25,
    budget: str = "latency<=0.6x",
    sink: Kept | None = None,
    earlier: Sequence[Trial] = (),
    seed: int = 0,
    bits: bool = False,
    timeout_s: float | None = None,
    max_rejections: int | None = 500,
) -> Context:
    config = SearchConfig(
        sampler=sampler,
        trials=trials,
        seed=seed,
        timeout_s=timeout_s,
        max_rejections=max_rejections,
    )
    return Context(
        make_space(evaluator.layers, bits=bits),
        evaluator,
        InProcessExecutor(evaluator),
        Budget(budget),
        config,
        [sink or Kept()],
        list(earlier),
    )


def search(ctx: Context) -> SearchResult:
    return run_search(ctx, make_proposer(ctx))

"""What a search should find at another budget, from what it has measured and screened."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.controller.context import Context
from autocompress.controller.expected_improvement import QualityForecast
from autocompress.controller.feasibility import ONE_SIDED_95, Feasibility
from autocompress.controller.guided.costs import EstimatedCosts
from autocompress.controller.guided.history import History
from autocompress.controller.guided.selector import Selector
from autocompress.controller.protocols import Settled
from autocompress.controller.solver import solve
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy
from autocompress.policy.space import Assignment
from autocompress.results.metric import Goal
from autocompress.results.trial import SEARCH, within

COVERAGE = 0.9
"""Of measured qualities, the share that lies in its interval."""
_LATEST = 300
"""Trials that the forecast is calibrated on; each is left out once."""
_JITTER = 0.5
"""Standard deviation of the logarithm to base 2 by which sensitivities are varied."""
_SEVERAL = 8
"""Answers of the solver for one budget, under varied sensitivities, of which one is taken."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value to expect.

    Args:
        value: itself.
        low, high: where ``COVERAGE`` of what is measured lies; not finite where too little is
            known to say.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to expect at one budget.

    Args:
        policy: that the solver takes for it.
        divergence: of its outputs from the uncompressed ones, in nats, as screened.
        quality: before training.
        costs: metric name to what is estimated.
    """

    policy: Policy
    divergence: float
    quality: Interval
    costs: dict[str, Interval]


class CalibratedForecast:
    """Quality from divergence, with an interval that its own errors on trials left out say.

    Errors grow with what is lost: each is divided by the expected loss and the noise, and the
    interval is their quantile (the jackknife; Barber et al., Predictive inference with the
    jackknife+, 2021; errors in units of a scale: Lei et al., Distribution-free predictive inference
    for regression, 2018).

    Args:
        seen: pairs of divergence, in nats, and quality.
        baseline: quality of the uncompressed model.
        noise: standard error of a quality, above 0.
        goal: whether more or less of the quality is better.
    """

    def __init__(
        self, seen: Sequence[tuple[float, float]], baseline: float, noise: float, goal: Goal
    ) -> None:
        seen = list(seen)[-_LATEST:]
        self._noise, self._baseline = noise, baseline
        self._middle = QualityForecast(seen, baseline, noise, goal)
        errors = []
        for i, (kl, quality) in enumerate(seen):
            others = QualityForecast([*seen[:i], *seen[i + 1 :]], baseline, noise, goal)
            expected = others(kl)
            errors.append(abs(quality - expected) / self._scale(expected))
        rank = math.ceil((len(errors) + 1) * COVERAGE)
        self._wide = sorted(errors)[rank - 1] if rank <= len(errors) else math.inf

    def _scale(self, expected: float) -> float:
        return self._noise + abs(self._baseline - expected)

    def __call__(self, kl: float) -> Interval:
        """The quality to expect at a divergence."""
        expected = self._middle(kl)
        away = self._wide * self._scale(expected)
        return Interval(expected, expected - away, expected + away)


class Forecaster:
    """Answers for any budget from one search, by the solver and its sensitivities.

    Args:
        context: with the trials of the search and what it screened; its budget is not looked at.
        seconds: that screening may take in all, for choices that the search did not probe and for
            the answers.
    """

    def __init__(self, context: Context, seconds: float) -> None:
        self.context = context
        self.costs = EstimatedCosts(context)
        self.history = History(context)
        self.selector = Selector(context, self.costs, self.history)
        self.sensitivity = self.selector.sensitivity
        self._ends = time.monotonic() + seconds
        for trial in context.ledger.trials:
            if trial.phase == SEARCH:
                self.history.add(Settled(context.space.encode(trial.policy), trial))
        self.sensitivity.probe(lambda: time.monotonic() < self._ends)
        base = context.feasibility.baseline
        seen = [
            (self.selector.divergence(self.history.assignment(t)), t.measurement.score)
            for t in self.history.complete()
            if t.measurement
        ]
        self.sensitivity.refit()
        noise = max(base.score_error, 1e-9)
        self.quality = CalibratedForecast(seen, base.score, noise, base.quality.goal)
        self.learned_from = len(seen)

    def ends(self) -> tuple[float, float]:
        """The cost of the cheapest policy by estimate, and of the uncompressed model."""
        base = self.context.feasibility.baseline
        self.context.feasibility = Feasibility(Budget(), base)
        most = self.costs.bounds()[self.context.cost]
        return self.costs.least(most, self._measured()), most

    def foretold(self, budget: Budget) -> Budget:
        """The limits of which estimates tell anything; memory, for one, is only measured."""
        return budget.on(self.costs(self.costs.cheapest))

    def at(self, budget: Budget, several: int = _SEVERAL) -> Forecast | None:
        """What to expect at a budget; ``None`` where no policy is estimated to be within it.

        Args:
            budget: limits.
            several: answers of the solver that are screened, the best of which is taken.
        """
        self.context.feasibility = Feasibility(budget, self.context.feasibility.baseline)
        bounds = self.costs.bounds()
        self.costs.least(bounds[self.context.cost], self._measured())
        answers = self._answers(bounds, several)
        if not answers:
            return None
        best = min(answers, key=self.selector.divergence)
        divergence = self.selector.divergence(best)
        found = self.context.estimate(best)
        return Forecast(
            self.context.space.decode(best),
            divergence,
            self.quality(divergence),
            {
                name: Interval(value, value - away, value + away)
                for name, value in found.values.items()
                for away in (ONE_SIDED_95 * found.spread.get(name, 0.0),)
            },
        )

    def _answers(self, bounds: dict[str, float], several: int) -> list[Assignment]:
        """The solver's answers under sensitivities as fitted to all answers so far, and varied."""
        vary, found = random.Random(self.context.config.seed), list[Assignment]()
        base = self.context.feasibility.baseline.values
        if within(self.context.feasibility.violations(base)):
            found.append(self.context.space.mildest)
        for number in range(several):
            if number and time.monotonic() > self._ends:
                break
            losses = self.sensitivity.losses
            if number % 2:
                losses = [table * 2.0 ** vary.gauss(0.0, _JITTER) for table in losses]
            answer = solve(
                self.context.space,
                losses,
                self.costs,
                bounds,
                cheap=self.costs.cheapest,
                marginals=self.costs.marginals,
                order=self.sensitivity.order,
                seconds=self.costs.solving_s,
            )
            if answer is None:
                break
            if answer not in found:
                found.append(answer)
                self.selector.divergence(answer)
                self.sensitivity.refit()
        return found

    def _measured(self) -> list[Assignment]:
        """The cheapest that were measured: estimates begin from them."""
        cost, done = self.context.cost, self.history.complete()
        done = sorted(done, key=lambda t: t.measurement[cost] if t.measurement else np.inf)
        return [self.history.assignment(trial) for trial in done[:20]]

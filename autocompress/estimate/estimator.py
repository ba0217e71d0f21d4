"""Tells what a policy costs before it is built; its latency model learns from finished trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autocompress.model.shapes import resolver
from autocompress.policy.costs import ON_OTHERS, P99, WORST
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.results.metric import Measurement
from autocompress.results.trial import Phase, Trial, TrialState

if TYPE_CHECKING:
    from autocompress.estimate.latency_model import LatencyModel
    from autocompress.model.cost import Cost

FOLLOWING = {P99: 0.15, "sample_ms": 0.15, **dict.fromkeys((*ON_OTHERS, WORST), 0.3)}
"""Costs that are about as many times the latency in every model of a study, and how far off that
is, as a share: on another target least of all."""


@dataclass
class Estimator:
    """Cost by formula and latency by a model; no weights are needed.

    Args:
        inventory: of the uncompressed model.
        settings: how compression is carried out.
        student_cost: from a student's name to what that architecture costs.
        where: the target as it describes itself; trials of others teach nothing.
        latency_model: predicts latency; ``None`` before profiling.
        following: costs that go with the latency, and what they are of it in the uncompressed
            model.
    """

    inventory: Inventory
    settings: CompressionSettings
    student_cost: Callable[[str], Cost]
    where: Mapping[str, Any]
    latency_model: LatencyModel | None = None
    following: Mapping[str, float] = field(default_factory=dict)
    _estimates: dict[Policy, Measurement] = field(default_factory=dict)
    _observed: set[tuple[str, Phase]] = field(default_factory=set)

    def cost(self, policy: Policy) -> Cost:
        """MACs, parameters and bytes by formula."""
        from autocompress.model.cost import policy_cost

        if policy.student is not None:
            return self.student_cost(policy.student)
        return policy_cost(self.inventory, policy, self.settings)

    def estimate(self, policy: Policy) -> Measurement:
        """Cost, and latency with its standard deviation where there is a latency model."""
        policy = policy.untrained
        known = self._estimates.get(policy)
        if known is None:
            model = self.latency_model
            latency = None if model is None else model.predict(policy)
            known = self._estimates[policy] = self._told(self.cost(policy), latency)
        return known

    def changes(self, policy: Policy) -> Callable[[Mapping[str, LayerPolicy]], Measurement]:
        """Estimates of policies that differ from one in a few layers, in time of these alone.

        Args:
            policy: to start from; no student.

        Returns:
            From what is done to some layers instead to what ``estimate`` gives.
        """
        from autocompress.model.cost import cost_changes

        shapes = resolver(self.inventory, self.settings).changes(policy)
        costs = cost_changes(self.inventory, policy, self.settings)
        latency = None if self.latency_model is None else self.latency_model.changes(policy)

        def changed(layers: Mapping[str, LayerPolicy]) -> Measurement:
            found = shapes(layers)
            return self._told(costs(found), None if latency is None else latency(found))

        return changed

    def predict_with(self, latency_model: LatencyModel, base: Measurement | None = None) -> None:
        """Take a latency model, which has seen no trial; estimates made before are forgotten.

        Args:
            latency_model: predicts.
            base: the uncompressed model, measured: what goes with its latency.
        """
        self.latency_model = latency_model
        if base is not None:
            known = (name for name in FOLLOWING if name in base)
            self.following = {name: base[name] / base["latency_ms"] for name in known}
        self._estimates.clear()
        self._observed.clear()

    def observe(self, trial: Trial) -> None:
        """Let the latency model learn a finished trial's timing; the same one counts only once.

        A disturbed timing, a student's and one that another device's table predicted teach nothing.

        Args:
            trial: of any phase, measured by any process, in this session or an earlier one.
        """
        key = (trial.policy.digest, trial.phase)
        if self.latency_model is None or key in self._observed or trial.policy.student is not None:
            return
        if trial.state is not TrialState.COMPLETE or trial.measurement is None:
            return
        timing = trial.measurement.timing
        # where a table of another device predicts latencies, the context names it beside the target
        if timing.disturbed or trial.measurement.context.get("target") != self.where:
            return
        if timing.ratio is None:  # nothing was timed, or a record from elsewhere
            return
        if timing.facts is not None and timing.facts.earlier:  # taken from a trial that taught it
            return
        self._observed.add(key)
        self.latency_model.observe(trial.policy, timing.ratio)
        self._estimates.clear()

    def _told(self, cost: Cost, latency: tuple[float, float] | None) -> Measurement:
        names = ("macs", "params", "size_bytes", "bops")
        values, spread = {n: float(getattr(cost, n)) for n in names}, {}
        if latency is not None:
            values["latency_ms"], spread["latency_ms"] = latency
            for name, share in self.following.items():
                values[name] = share * latency[0]
                spread[name] = math.hypot(share * latency[1], FOLLOWING[name] * values[name])
        return Measurement(values, spread)

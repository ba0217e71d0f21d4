"""Before a study: how large is its space, and can its budget be met at all?"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autocompress.build.pipeline import student_cost
from autocompress.controller.feasibility import Feasibility
from autocompress.controller.near import estimates_near
from autocompress.controller.samplers import check_sampler
from autocompress.controller.solver import cheapest
from autocompress.controller.starts import ladders
from autocompress.errors import InfeasibleBudget
from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.model.cost import Cost, policy_cost
from autocompress.policy.budget import Budget, Limit
from autocompress.policy.costs import BY_NAME, said
from autocompress.policy.policy import Policy
from autocompress.policy.space_config import SpaceConfig
from autocompress.report.tables import number_text
from autocompress.results.trial import exceeded, worst_excess
from autocompress.run.advice import advice_for
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.study import AUTO, StudyConfig
from autocompress.run.target_fit import tell

if TYPE_CHECKING:
    from autocompress.policy.space import Assignment


_log = logging.getLogger(__name__)
_PLAIN = "joint"
"""The space where none may be measured."""


@dataclass(frozen=True)
class Ends:
    """The cheapest end of a space and the most expensive one, the uncompressed model.

    Args:
        budget: as far as these values tell it.
        cheapest: the policy that comes nearest to the budget.
        cheapest_values, baseline_values: metric name to value.
        measured: whether files were built and timed, or all of it was foretold.
    """

    budget: Budget
    cheapest: Policy
    cheapest_values: Mapping[str, float]
    baseline_values: Mapping[str, float]
    measured: bool = False

    @property
    def over(self) -> dict[str, float]:
        """The limits that not even the cheapest policy meets, and by how much."""
        return exceeded(self.budget.violations(self.cheapest_values, self.baseline_values))

    @property
    def reason(self) -> str:
        """Why the budget cannot be met; empty where it can."""
        over, values = self.over, self.cheapest_values
        if not over:
            return ""
        worst = max(over, key=over.__getitem__)
        limits = (li for li in self.budget.limits if li.metric in over)
        needed = [_reached(limit, values, self.baseline_values) for limit in limits]
        return (
            f"The budget ({self.budget}) cannot be met: the cheapest policy of this space still "
            f"has {said(worst)} {number_text(worst, values[worst])}, {over[worst]:.0%} over its "
            f"limit. Loosen the budget "
            f"(it could just meet {', '.join(needed)}), or give the space harder levels (higher "
            "prune ratios, 8 bits, prune_residual)."
        )

    def check(self) -> None:
        """Raise ``InfeasibleBudget`` where the budget cannot be met."""
        if self.reason:
            raise InfeasibleBudget(self.reason)


def _reached(limit: Limit, values: Mapping[str, float], base: Mapping[str, float]) -> str:
    """A limit that these values meet with 5 % to spare, rounded up to two digits."""
    value = 1.05 * values[limit.metric] / (base[limit.metric] if limit.relative else 1.0)
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return str(replace(limit, value=math.ceil(value / step) * step))


def formula_ends(parts: Assembly) -> Ends:
    """The ends in multiply-adds and parameters: nothing is built or timed for them."""
    settings = parts.study.settings

    def values(cost: Cost) -> dict[str, float]:
        return {"macs": float(cost.macs), "params": float(cost.params)}

    base = values(policy_cost(parts.inventory, Policy(), settings))
    hardest = parts.space.decode(parts.space.hardest)
    known = {hardest: values(policy_cost(parts.inventory, hardest, settings))}
    example = parts.data.train.inputs(1)
    for name, make in parts.students.items():
        known[Policy(student=name)] = values(student_cost(make(), example, settings))
    return _nearest(parts.study.limits().on(base), known, base)


def estimated_ends(parts: Assembly, base: Mapping[str, float]) -> Ends:
    """The ends by formula and by the latency model.

    Args:
        parts: of the study; the evaluator has its latency model.
        base: values of the uncompressed model, measured or foretold.
    """
    known = {p: parts.evaluator.estimate(p).values for p in cheap_ends(parts)}
    told = parts.study.limits().on(next(iter(known.values())))
    return _nearest(told, known, base)


def measured_ends(parts: Assembly) -> Ends:
    """The uncompressed model and the better of the two policies that are cheapest by estimate."""
    evaluator = parts.evaluator
    base = evaluator.baseline.values
    known = {p: evaluator.estimate(p).values for p in cheap_ends(parts)}
    told = parts.study.limits().on(next(iter(known.values())))
    two = sorted(known, key=lambda p: worst_excess(told.violations(known[p], base)))[:2]
    found = _nearest(told, {p: evaluator.evaluate(p).values for p in two}, base)
    return replace(found, measured=True)


def _nearest(
    budget: Budget, known: Mapping[Policy, Mapping[str, float]], base: Mapping[str, float]
) -> Ends:
    cheapest = min(known, key=lambda p: worst_excess(budget.violations(known[p], base)))
    return Ends(budget, cheapest, known[cheapest], base)


def cheap_ends(parts: Assembly) -> list[Policy]:
    """The cheapest policy by estimate, then the hardest one and the uniform ladders.

    The hardest levels are not always the quickest: a factorized layer is two small ones. From the
    quickest ladder, one choice after another takes its quickest level until none gains.
    """
    space, evaluator = parts.space, parts.evaluator

    def near(levels: Assignment) -> Callable[[int, int], Mapping[str, float]]:
        found = estimates_near(space, evaluator, levels)
        return lambda place, level: found(place, level).values

    ends = [space.hardest, *(levels for _, levels in ladders(space))]
    start = min(ends, key=lambda e: evaluator.estimate(space.decode(e))["latency_ms"])
    best = cheapest(space, near, "latency_ms", start)
    return [space.decode(levels) for levels in [best, *(e for e in ends if e != best)]]


def settle_space(parts: Assembly) -> None:
    """Measure what each way to compress gains here, where the study leaves its space to that.

    Nothing is measured for a budget that the whole of it cannot meet by formula, which
    ``can_be_met`` then says.

    Args:
        parts: of the study; ``advice`` and the space of its ``study`` are set.
    """
    if parts.study.space != AUTO or formula_ends(parts).over:
        return
    space: SpaceConfig | str = _PLAIN
    if parts.study.tracking.storage is not None:
        _log.info(
            f"The space is `{_PLAIN}`: drivers that share a study must search the same one, and "
            "what is measured differs from machine to machine. Name a `space` to search another."
        )
    else:
        parts.advice = advice_for(parts)
        _log.info(parts.advice["cost"])
        for sentence in parts.advice["reasons"]:
            _log.info("Searched: %s", sentence)
        for sentence in parts.advice["left_out"]:
            _log.info("Left out: %s", sentence)
        space = SpaceConfig.read(parts.advice["space"], where="the advised space")
    parts.study = parts.study.model_copy(update={"space": space})
    del parts.space  # that of before
    target = type(parts.evaluator.measurer.target)
    tell(parts.space, parts.study.space_config(), parts.inventory, target)


def can_be_met(parts: Assembly, progress: Progress, *, timed: bool) -> Ends:
    """Whether the budget can be met: by formula, then by estimate, and measured at last.

    Each step is taken only where the one before leaves the question open. A search and a dry run
    ask here, and differ in what they may take the time for.

    Args:
        parts: of the study; its evaluator gets the latency model where the formula says yes.
        progress: told what is going on.
        timed: measure the uncompressed model, and believe measurements alone where an estimate
            says no. Else estimates do as far as they can: where the latency model is in the cache,
            nothing is timed, and a machine that another study occupies is not waited for, unless
            the estimates leave the question open.
    """
    ends = formula_ends(parts)
    if ends.over:
        return ends
    progress("latency table", 0.0)
    if timed:
        parts.predict_latency()
        if not parts.study.limits().limits:
            return ends
        base = parts.evaluator.baseline
    else:
        parts.evaluator.estimator.predict_with(parts.latency_model())
        base = parts.evaluator.estimate(Policy())
    ends = estimated_ends(parts, base.values)
    if ends.over and (timed or not _certainly_over(parts)):
        progress("measuring the cheapest policies", 0.0)
        if not timed:
            parts.predict_latency()
        ends = measured_ends(parts)
    return ends


def dry_run(study: StudyConfig, progress: Progress) -> dict[str, Any]:
    """The resolved study, the size of its space, its ends, and whether the budget can be met.

    ``only_measured`` holds limits that no estimate tells, such as one on memory.

    Args:
        study: as read.
        progress: told what is going on.
    """
    check_sampler(study.search.sampler)
    with scratch_folder("budget") as scratch:
        # what a policy costs does not depend on trained weights: a baseline may take an hour
        untrained = study.model_copy(update={"baseline": None})
        parts = assemble(untrained, scratch, progress=progress)
        settle_space(parts)
        ends = can_be_met(parts, progress, timed=False)
        quality = parts.task.quality.name
    return {
        "study": study.model_dump(mode="json"),
        "choices": len(parts.space.choices),
        "log10_policies": parts.space.log10_size,
        "most_expensive": _end(Policy(), ends.baseline_values, ends.measured, quality),
        "cheapest": _end(ends.cheapest, ends.cheapest_values, ends.measured, quality),
        "budget": list(study.budget),
        "only_measured": [
            str(limit)
            for limit in study.limits().limits
            if limit.metric not in ends.cheapest_values
        ],
        "can_be_met": not ends.over,
        "feasible": not ends.over,  # its name for scripts of before
        "reason": ends.reason,
    }


def _certainly_over(parts: Assembly) -> bool:
    """Whether a limit is exceeded even if the estimates err by much in every policy's favour."""
    estimate = parts.evaluator.estimate
    judge = Feasibility(parts.study.limits(), estimate(Policy()))
    return all(judge.infeasible_by_estimate(estimate(p)) for p in cheap_ends(parts))


def _end(
    policy: Policy, values: Mapping[str, float], measured: bool, quality: str
) -> dict[str, Any]:
    """One end as ``--json`` shows it; ``null`` is what estimates do not tell."""
    shown = {name: values.get(name) for name in (quality, *BY_NAME)}
    return {"policy": policy.as_dict(), "measured": measured, **shown}

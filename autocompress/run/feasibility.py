"""Before a study: how large is its space, and can its budget be met at all?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from autocompress.commands.display import status
from autocompress.errors import InfeasibleBudget
from autocompress.policy.policy import Policy
from autocompress.run.study import StudyConfig

if TYPE_CHECKING:
    from autocompress.model.cost import Cost
    from autocompress.policy.budget import Budget, Limit
    from autocompress.policy.space import Assignment
    from autocompress.run.assembly import Assembly


def check_formula_budget(parts: Assembly) -> None:
    """Refuse limits on MACs and parameters that not even the hardest policy meets.

    Raises:
        InfeasibleBudget: before any compute was spent.
    """
    from autocompress.build.pipeline import student_cost
    from autocompress.model.cost import policy_cost
    from autocompress.policy.budget import Budget

    settings = parts.study.settings
    hardest = policy_cost(parts.inventory, parts.space.decode(parts.space.hardest), settings)
    whole = policy_cost(parts.inventory, Policy(), settings)
    known = ("macs", "params")
    limits = Budget(*(x for x in parts.study.limits().limits if x.metric in known))
    base = {n: float(getattr(whole, n)) for n in known}

    def over(cost: Cost) -> dict[str, float]:
        return limits.violations({n: float(getattr(cost, n)) for n in known}, base)

    example = parts.data.train.inputs(1)
    students = (student_cost(make(), example, settings) for make in parts.students.values())
    ends = [hardest, *students]
    cheapest = min(ends, key=lambda cost: max(over(cost).values(), default=0.0))
    _refuse({n: float(getattr(cheapest, n)) for n in known}, base, limits)


def check_latency_budget(parts: Assembly) -> None:
    """Refuse a latency or size that not even the cheapest policy reaches, measured.

    The estimate is asked first; only if it finds nothing within the budget, the cheapest
    candidates are built and timed.
    """
    budget, evaluator = parts.study.limits(), parts.evaluator
    if not budget.limits:
        return

    def over(values: Any) -> float:
        return max(budget.violations(values, evaluator.baseline.values).values())

    policies = [parts.space.decode(levels) for levels in cheap_ends(parts)]
    estimates = sorted(((over(evaluator.estimate(p).values), i) for i, p in enumerate(policies)))
    if estimates[0][0] <= 0:
        return
    measured = {i: evaluator.evaluate(policies[i]).values for _, i in estimates[:2]}
    best = min(measured, key=lambda i: over(measured[i]))
    _refuse(measured[best], evaluator.baseline.values, budget)


def cheap_ends(parts: Assembly) -> list[Assignment]:
    """The cheapest assignment by estimate, then the hardest one and the uniform ladders.

    The hardest levels are not always the quickest: a factorized layer is two small ones. From the
    quickest ladder, one choice after another takes its quickest level until none gains.
    """
    from autocompress.controller.seeds import ladders
    from autocompress.controller.solver import cheapest

    def costs(levels: Assignment) -> Mapping[str, float]:
        return parts.evaluator.estimate(parts.space.decode(levels)).values

    ends = [parts.space.hardest, *(levels for _, levels in ladders(parts.space))]
    start = min(ends, key=lambda levels: costs(levels)["latency_ms"])
    best = cheapest(parts.space, costs, "latency_ms", start)
    return [best, *(e for e in ends if e != best)]


def _refuse(values: Mapping[str, float], base: Mapping[str, float], budget: Budget) -> None:
    over = {n: v for n, v in budget.violations(values, base).items() if v > 0}
    if not over:
        return
    worst = max(over, key=lambda n: over[n])
    needed = [_reached(li, values, base) for li in budget.limits if li.metric in over]
    raise InfeasibleBudget(
        f"The budget ({budget}) cannot be met: the cheapest policy of this space still has "
        f"{worst} {values[worst]:.4g}, {over[worst]:.0%} over its limit. Loosen the budget "
        f"(it could just meet {', '.join(needed)}), or give the space harder levels (higher prune "
        "ratios, 8 bits, prune_residual)."
    )


def _reached(limit: Limit, values: Mapping[str, float], base: Mapping[str, float]) -> str:
    """A limit that these values meet with 5 % to spare, rounded up to two digits."""
    value = 1.05 * values[limit.metric] / (base[limit.metric] if limit.relative else 1.0)
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return str(replace(limit, value=math.ceil(value / step) * step))


def dry_run(study: StudyConfig) -> dict[str, Any]:
    """The resolved study, the size of its space, its ends, and whether the budget can be met."""
    import tempfile

    from autocompress.run.assembly import assemble

    with tempfile.TemporaryDirectory() as scratch, status(True) as say:
        # what a policy costs does not depend on trained weights: a baseline may take an hour
        untrained = study.model_copy(update={"baseline": None})
        parts = assemble(untrained, Path(scratch), progress=say)
        check_formula_budget(parts)
        evaluator = parts.evaluator
        parts.predict_latency()
        cheapest = parts.space.decode(cheap_ends(parts)[0])
        ends = {
            "dearest": {"policy": Policy().as_dict(), **evaluator.baseline.values},
            "cheapest": {"policy": cheapest.as_dict(), **evaluator.evaluate(cheapest).values},
        }
        try:
            check_latency_budget(parts)
            feasible, reason = True, ""
        except InfeasibleBudget as error:
            feasible, reason = False, str(error)
    return {
        "study": study.model_dump(mode="json"),
        "choices": len(parts.space.choices),
        "log10_policies": parts.space.log10_size,
        **ends,
        "budget": list(study.budget),
        "feasible": feasible,
        "reason": reason,
    }


def show_dry_run(found: dict[str, Any], console: Console) -> None:
    """The dry run for people."""
    import yaml

    console.print(yaml.safe_dump(found["study"], sort_keys=False), highlight=False)
    console.print(f"{found['choices']} choices, about 10^{found['log10_policies']:.0f} policies")
    for name in ("dearest", "cheapest"):
        end = found[name]
        console.print(
            f"{name}: {end['latency_ms']:.3f} ms, {end['macs'] / 1e6:.2f} M MACs, "
            f"{end['size_bytes'] / 1e3:.1f} kB"
        )
    budget = ", ".join(found["budget"]) or "none"
    console.print(f"budget ({budget}): " + ("can be met" if found["feasible"] else found["reason"]))

"""Where every search begins: policies that a person would try by hand."""

from __future__ import annotations

from collections.abc import Iterator

from autocompress.controller.context import Context
from autocompress.policy.space import Assignment, Space

_RATIOS = (0.5, 0.25, 0.75, 0.375, 0.625, 0.125, 0.875)
_INT8 = {"weight_bits": 8, "activation_bits": 8}
_NEAR = 3


def ladders(space: Space) -> Iterator[tuple[str, Assignment]]:
    """Policies, each with its origin: int8, ladders per technique and joint, then the students.

    The order mixes mild and hard ones, so that a short study sees the whole range of costs.
    """
    fields = {field for c in space.choices for level in c.levels for field in level}
    found: list[tuple[str, Assignment]] = []
    has_int8 = any(level.get("activation_bits") == 8 for c in space.choices for level in c.levels)
    if has_int8:
        found.append(("int8", space.uniform(**_INT8)))
    for ratio in _RATIOS:
        if "prune_ratio" in fields:
            if has_int8:
                found.append(("uniform", space.uniform(prune_ratio=ratio, **_INT8)))
            found.append(("uniform", space.uniform(prune_ratio=ratio)))
    for ratio in (0.5, 0.75, 0.25):
        if "rank_ratio" in fields:
            found.append(("uniform", space.uniform(rank_ratio=ratio)))
        if "sparsity" in fields:
            found.append(("uniform", space.uniform(sparsity=ratio)))
    if "weight_bits" in fields and not has_int8:
        found.append(("uniform", space.uniform(weight_bits=8)))
        found.append(("uniform", space.uniform(weight_bits=4)))
    found += [("student", levels) for levels in students(space)]
    seen = {space.mildest}
    for origin, levels in found:
        if levels not in seen:
            seen.add(levels)
            yield origin, levels


def students(space: Space) -> Iterator[Assignment]:
    """Each other architecture of the space once; what its layers would do says nothing then."""
    place = space.index.get("student")
    if place is None:
        return
    for level in range(1, len(space.choices[place].levels)):
        yield (*space.mildest[:place], level, *space.mildest[place + 1 :])


def uniform_by_cost(context: Context) -> list[Assignment]:
    """The uniform policies of the ladders, by estimate the cheapest first."""
    found = [levels for origin, levels in ladders(context.space) if origin == "uniform"]
    return sorted(found, key=lambda a: context.estimate(a).get(context.cost) or 0.0)


def uniform_near(context: Context) -> list[Assignment]:
    """The mildest uniform policies that are likely within the budget.

    Where they are fewer than three, the cheapest of those that might be follow: they show how
    far the estimate is off.
    """
    found = [(a, context.estimate(a)) for a in uniform_by_cost(context)]
    judge = context.feasibility
    likely = [a for a, estimate in reversed(found) if judge.likely(estimate)]
    possible = [
        a for a, e in found if judge.infeasible_by_estimate(e) is None and not judge.likely(e)
    ]
    return [*likely, *possible][:_NEAR]


def leading_seeds(context: Context) -> list[tuple[str, Assignment]]:
    """int8, the mildest uniform policies within the budget, and the students.

    The rest of the ladders are what the solver does better; the baselines of the study still show
    the best uniform policy.
    """
    found = list(ladders(context.space))
    int8 = [s for s in found if s[0] == "int8"][:1]
    uniform = [("uniform", levels) for levels in uniform_near(context)]
    students = [s for s in found if s[0] == "student"]
    fitting = [s for s in students if context.feasibility.likely(context.estimate(s[1]))]
    return [*int8, *uniform, *fitting]

"""Where every search begins: policies that a person would try by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any

from autocompress.controller.context import Context
from autocompress.policy.registry import named_starts, techniques
from autocompress.policy.space import Assignment, Space

_NEAR = 3


def ladders(space: Space) -> Iterator[tuple[str, Assignment]]:
    """Policies, each with its origin: named ones (int8), ladders per technique and joint, then the
    students.

    The order mixes mild and hard ones, so that a short study sees the whole range of costs.
    """
    every = _levels(space)
    offered = [(t, [level for level in every if t.fields[0].name in level]) for t in techniques()]
    offered = [(technique, own) for technique, own in offered if own]
    starts = named_starts(every)
    found = [(name, space.uniform(**values)) for name, values in starts.items()]
    for coupled in (True, False):
        ladders = [t.ladder(own) for t, own in offered if t.coupled is coupled]
        for values in filter(None, chain(*zip_longest(*ladders))):
            if coupled:
                found += [("uniform", space.uniform(**{**n, **values})) for n in starts.values()]
            found.append(("uniform", space.uniform(**values)))
    found += [("student", levels) for levels in students(space)]
    seen = {space.mildest}
    for origin, levels in found:
        if levels not in seen:
            seen.add(levels)
            yield origin, levels


def named(space: Space) -> dict[str, Assignment]:
    """The policies that techniques give a name, as far as the space has them."""
    found = {n: space.uniform(**values) for n, values in named_starts(_levels(space)).items()}
    return {name: levels for name, levels in found.items() if levels != space.mildest}


def _levels(space: Space) -> list[Mapping[str, Any]]:
    return [level for choice in space.choices for level in choice.levels]


def students(space: Space) -> Iterator[Assignment]:
    """Each other architecture of the space once; what its layers would do says nothing then."""
    place = space.student_place
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


def warm_starts(context: Context) -> list[tuple[str, Assignment]]:
    """Of an earlier run's front what may be within the budget: both ends, and what lies between.

    The most expensive one, which the answer is nearest to, comes first.
    """
    judge = context.feasibility.infeasible_by_estimate
    estimates = {a: context.estimate(a) for a in context.warm.assignments(context.space)}
    possible = [levels for levels, found in estimates.items() if judge(found) is None]
    possible.sort(key=lambda levels: -(estimates[levels].get(context.cost) or 0.0))
    last = len(possible) - 1
    places = dict.fromkeys(round(last * i / (_NEAR - 1)) for i in range(_NEAR)) if possible else {}
    return [("warm", possible[place]) for place in places]


def leading_starts(context: Context) -> list[tuple[str, Assignment]]:
    """Those with a name (int8), the mildest uniform ones within the budget, and the students.

    An earlier run's front, where there is one, takes the place of uniform ones. The rest of the
    ladders are what the solver does better; the study's reference policies still show the best
    uniform one.
    """
    first = warm_starts(context)
    uniform = [] if first else [("uniform", levels) for levels in uniform_near(context)]
    fitting = [
        ("student", levels)
        for levels in students(context.space)
        if context.feasibility.likely(context.estimate(levels))
    ]
    return [*first, *named(context.space).items(), *uniform, *fitting]

"""Estimates around an assignment: what every level of every choice would change."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from autocompress.controller.protocols import Evaluator, NearEvaluator
from autocompress.policy.space import Assignment, Space
from autocompress.results.metric import Measurement


def estimates_near(
    space: Space, evaluator: Evaluator, assignment: Assignment
) -> Callable[[int, int], Measurement]:
    """Estimates of assignments that differ from one in one choice.

    Args:
        space: of the assignment.
        evaluator: one that estimates small changes does it in time of these alone.
        assignment: to start from.

    Returns:
        From the place of a choice and a level to what ``Evaluator.estimate`` gives.
    """

    def whole(place: int, level: int) -> Measurement:
        changed = (*assignment[:place], level, *assignment[place + 1 :])
        return evaluator.estimate(space.decode(changed))

    policy = space.decode(assignment)
    # not by `isinstance`: that reads all members, and a baseline is measured when it is read
    if policy.student is not None or not hasattr(type(evaluator), "estimate_changes"):
        return whole
    estimate = cast(NearEvaluator, evaluator).estimate_changes(policy)

    def near(place: int, level: int) -> Measurement:
        layers = space.set_by(assignment, place, level)
        return whole(place, level) if layers is None else estimate(layers)

    return near

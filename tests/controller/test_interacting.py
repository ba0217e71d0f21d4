"""Choices that hurt more together than one by one: their order, and what the solver makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest

from autocompress.controller.sensitivity import Sensitivity
from autocompress.controller.solver import knapsack, solve
from autocompress.policy.inventory import Inventory
from autocompress.policy.space import Assignment, Choice, Space

COUNT = 6
ALONE = (0.10, 0.11, 0.15, 0.16, 0.5, 0.6)
"""Nats of each block; the first two stand in for each other."""


def space(bits: bool = False) -> Space:
    levels = ({"block": "keep"}, {"block": "gone"})
    choices = [Choice(f"{i}/block", "block", (str(i),), levels) for i in range(COUNT)]
    if bits:
        pairs = ({"weight_bits": 32}, {"weight_bits": 8})
        choices.append(Choice("0/bits", "bits", ("x",), pairs))
    return Space(tuple(choices), Inventory((), (), (), "", ""))


def harm(assignment: Assignment) -> float:
    both = 2.0 if assignment[0] and assignment[1] else 0.0
    return float(np.dot(ALONE, assignment[:COUNT])) + both + 0.01 * sum(assignment[COUNT:])


def costs(assignment: Assignment) -> Mapping[str, float]:
    return {"macs": 10.0 - sum(assignment[:COUNT]) - 0.5 * sum(assignment[COUNT:])}


def probed(found: Space) -> Sensitivity:
    sensitivity = Sensitivity(found, harm)
    sensitivity.probe(lambda: True)
    return sensitivity


def test_the_greedy_order_sees_what_single_probes_do_not() -> None:
    sensitivity = probed(space())
    assert sensitivity.order[:3] == (0, 2, 3)
    assert sensitivity.order.index(1) > 3
    for count in (1, 2, 3):
        taken = set(sensitivity.order[:count])
        best = min(
            combinations(range(COUNT), count),
            key=lambda some: harm(tuple(int(i in some) for i in range(COUNT))),
        )
        assert taken == set(best)
    adds = [sensitivity.losses[i][1] for i in sensitivity.order]
    assert adds == sorted(adds)


@pytest.mark.parametrize("limit", [9.0, 8.0, 7.0, 6.5])
def test_the_solver_takes_the_first_of_the_order(limit: float) -> None:
    found = space(bits=True)
    sensitivity = probed(found)
    answer = solve(found, sensitivity.losses, costs, {"macs": limit}, order=sensitivity.order)
    assert answer is not None
    assert costs(answer)["macs"] <= limit
    levels = [answer[i] for i in sensitivity.order]
    assert levels == sorted(levels, reverse=True)
    assert not (answer[0] and answer[1])


def test_the_knapsack_keeps_an_order_at_a_price() -> None:
    """Brute force over all prefixes, with savings that tempt out of the order."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        losses = [np.array([0.0, x]) for x in draw.uniform(0, 1, 5)]
        savings = draw.uniform(0, 3, 5)
        tables = [np.array([[0.0, -saved]]) for saved in savings]
        order = [int(i) for i in draw.permutation(5)]
        limit = -float(draw.uniform(0, savings.sum()))
        found = knapsack(losses, tables, np.array([limit]), order)
        fitting = [order[:n] for n in range(6) if -savings[order[:n]].sum() <= limit]
        best = min(fitting, key=lambda some: sum(losses[i][1] for i in some))
        assert found == tuple(int(i in best) for i in range(5))


def test_without_such_choices_there_is_no_order() -> None:
    pairs = ({"weight_bits": 32}, {"weight_bits": 8})
    choices = tuple(Choice(f"{i}/bits", "bits", (str(i),), pairs) for i in range(3))
    sensitivity = Sensitivity(Space(choices, Inventory((), (), (), "", "")), lambda a: sum(a) + 0.1)
    sensitivity.probe(lambda: True)
    assert sensitivity.order == ()

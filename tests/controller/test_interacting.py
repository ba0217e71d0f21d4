"""Choices that hurt more together than one by one: their order, and what the solver makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from analytic import AnalyticEvaluator, make_space

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.guided.proposer import GuidedProposer
from autocompress.controller.sensitivity import Sensitivity
from autocompress.controller.solver import knapsack, solve
from autocompress.execute.local import InProcessExecutor
from autocompress.policy.budget import Budget
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
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


class Blocks(AnalyticEvaluator):
    """Each layer is a block that may go, or have 8 bits.

    Args:
        bits: what all layers in 8 bits lose, beside 0.21 of all blocks.
    """

    def __init__(self, bits: float) -> None:
        super().__init__(COUNT)
        self.bits = bits

    def _loss(self, policy: Policy) -> float:
        layers = [policy[f"l{i}"] for i in range(COUNT)]
        gone = sum(0.01 * (i + 1) for i, layer in enumerate(layers) if layer.block == "gone")
        return gone + self.bits * sum(layer.integer for layer in layers) / COUNT

    def _latency(self, policy: Policy) -> float:
        layers = [policy[f"l{i}"] for i in range(COUNT)]
        return 0.5 + sum(0.6 if x.integer else 1.0 for x in layers if x.block != "gone")


@pytest.mark.parametrize(("bits", "beside"), [(0.001, True), (0.5, False)])
def test_sets_of_blocks_go_beside_bits_that_lose_nothing(bits: float, beside: bool) -> None:
    levels = ({"block": "keep"}, {"block": "gone"})
    eight = tuple({"weight_bits": b, "activation_bits": b} for b in (32, 8))
    names = [f"l{i}" for i in range(COUNT)]
    choices = [Choice(f"{n}/block", "block", (n,), levels) for n in names]
    choices += [Choice(f"{n}/bits", "bits", (n,), eight) for n in names]
    found, evaluator = Space(tuple(choices), make_space(COUNT).inventory), Blocks(bits)
    hands = InProcessExecutor(evaluator)
    ctx = Context(found, evaluator, hands, Budget("latency<=0.6x"), SearchConfig())
    guided = GuidedProposer(ctx)
    guided.ladder._probe()
    sets = guided.ladder.nested()
    assert sets
    for one in sets:
        assert all(one[COUNT:]) if beside else not any(one[COUNT:])
        gone = sum(one[:COUNT])
        assert one[:COUNT] == (1,) * gone + (0,) * (COUNT - gone)


def test_the_solver_sees_past_conversions_between_bits() -> None:
    """A layer in 8 bits alone saves nothing: its values are converted. Against enumeration."""
    draw = np.random.default_rng(1)
    levels, eight = ({"block": "keep"}, {"block": "gone"}), ({}, {"weight_bits": 8})
    choices = [Choice(f"l{i}/block", "block", (f"l{i}",), levels) for i in range(COUNT)]
    choices += [Choice(f"l{i}/bits", "bits", (f"l{i}",), eight) for i in range(COUNT)]
    found = Space(tuple(choices), Inventory((), (), (), "", ""))

    def time_of(assignment: Assignment) -> Mapping[str, float]:
        left = [assignment[COUNT + i] for i in range(COUNT) if not assignment[i]]
        ends = [0, *left, 0]
        conversions = sum(a != b for a, b in pairwise(ends))
        return {"macs": sum(0.4 if x else 1.0 for x in left) + 0.35 * conversions}

    for _ in range(5):
        steps = np.sort(draw.uniform(0.05, 0.5, COUNT))
        losses = [np.array([0.0, x]) for x in (*steps, *draw.uniform(0, 0.02, COUNT))]
        order = range(COUNT)
        prefixes = [(1,) * n + (0,) * (COUNT - n) for n in range(COUNT + 1)]
        every = [(*a, *b) for a in prefixes for b in product((0, 1), repeat=COUNT)]
        lost = {a: float(sum(t[x] for t, x in zip(losses, a, strict=True))) for a in every}
        for limit in (4.0, 3.2, 2.5, 1.6):
            best = min(lost[a] for a in every if time_of(a)["macs"] <= limit)
            answer = solve(found, losses, time_of, {"macs": limit}, order=order)
            assert answer is not None
            assert time_of(answer)["macs"] <= limit
            assert lost[answer] <= best + 0.1

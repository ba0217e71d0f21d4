"""The exact solver against enumeration of everything."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from analytic import AnalyticEvaluator, make_space
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.controller.knapsack import knapsack
from autocompress.controller.solver import cheapest, solve
from autocompress.policy.inventory import Inventory
from autocompress.policy.space import Assignment, Choice, Space

numbers = st.integers(-50, 100)


def test_what_the_solver_prints_is_no_output_of_ours(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import scipy.optimize

    real = scipy.optimize.milp

    def chatty(*args: object, **kwargs: object) -> object:
        os.write(1, b"from the solver's own code\n")
        return real(*args, **kwargs)

    monkeypatch.setattr(scipy.optimize, "milp", chatty)
    losses = [np.array([0.0, 1.0])]
    assert knapsack(losses, [np.array([[1.0, 0.0]])], np.array([0.5])) == (1,)
    print("ours")
    captured = capfd.readouterr()
    assert captured.out == "ours\n"
    assert "own code" not in captured.err


@given(st.data())
@settings(max_examples=60)
def test_knapsack_is_the_best_of_all_combinations(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    metrics = data.draw(st.integers(1, 2))
    losses = [np.array([data.draw(st.integers(0, 100)) for _ in range(n)], float) for n in sizes]
    costs = [
        np.array([[data.draw(numbers) for _ in range(n)] for _ in range(metrics)], float)
        for n in sizes
    ]
    limits = np.array([data.draw(st.integers(-100, 200)) for _ in range(metrics)], float)

    def total(levels: tuple[int, ...]) -> float:
        return float(sum(t[level] for t, level in zip(losses, levels, strict=True)))

    def fits(levels: tuple[int, ...]) -> bool:
        used = sum(c[:, level] for c, level in zip(costs, levels, strict=True))
        return bool((used <= limits).all())

    fitting = [a for a in itertools.product(*(range(n) for n in sizes)) if fits(a)]
    found = knapsack(losses, costs, limits)
    if not fitting:
        assert found is None
    else:
        assert found is not None
        assert fits(found)
        assert total(found) == min(map(total, fitting))
        # where levels are mixed, as many choices as there are limits may be rounded the wrong way
        near = knapsack(losses, costs, limits, exact=False)
        assert near is not None
        assert total(near) <= min(map(total, fitting)) + 100 * metrics


@pytest.mark.parametrize("metric", ["latency_ms", "macs"])
@pytest.mark.parametrize("share", [0.5, 0.65, 0.8])
def test_solve_against_enumeration_on_real_costs(metric: str, share: float) -> None:
    """Latency is additive here, so the answer must be the optimum; MACs are products."""
    space, evaluator = make_space(4, 6), AnalyticEvaluator(4, seed=3)
    rng = np.random.default_rng(1)
    losses = [np.cumsum(rng.uniform(0, 1, len(c.levels))) for c in space.choices]

    def costs(levels: tuple[int, ...]) -> dict[str, float]:
        return dict(evaluator.estimate(space.decode(levels)).values)

    def total(levels: tuple[int, ...]) -> float:
        return float(sum(t[level] for t, level in zip(losses, levels, strict=True)))

    limit = share * evaluator.baseline[metric]
    found = solve(space, losses, costs, {metric: limit})
    every = itertools.product(*(range(len(c.levels)) for c in space.choices))
    fitting = [a for a in every if costs(a)[metric] <= limit]
    best = min(map(total, fitting))
    assert found is not None
    assert costs(found)[metric] <= limit
    if metric == "latency_ms":
        assert total(found) == pytest.approx(best, abs=1e-9)
    else:
        # linearized around each answer: near the optimum, never over the limit
        assert total(found) <= np.quantile([total(a) for a in fitting], 0.01)


@pytest.mark.parametrize("share", [0.4, 0.55, 0.7, 0.85])
def test_of_large_networks_the_whole_budget_is_used(share: float) -> None:
    """Products of widths, as MACs are; no two levels can be exchanged for a gain."""
    layers = 60
    space, evaluator = make_space(layers), AnalyticEvaluator(layers, seed=1)
    rng = np.random.default_rng(2)
    losses = [np.cumsum(rng.uniform(0, 1, len(c.levels))) for c in space.choices]

    def costs(levels: Assignment) -> dict[str, float]:
        return {"macs": evaluator.estimate(space.decode(levels)).values["macs"]}

    limit = share * evaluator.baseline["macs"]
    found = solve(space, losses, costs, {"macs": limit}, polish=False)
    assert found is not None
    assert 0.99 * limit <= costs(found)["macs"] <= limit
    for i, level in enumerate(found):
        milder = (*found[:i], level - 1, *found[i + 1 :])
        assert not level or costs(milder)["macs"] > limit


def test_solve_begins_nothing_new_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at costs takes a second; what was found by then meets the limits all the same."""
    layers = 30
    space, evaluator = make_space(layers, bits=True), AnalyticEvaluator(layers, seed=2)
    rng, looks = np.random.default_rng(3), [0]
    losses = [np.cumsum(rng.uniform(0, 1, len(c.levels))) for c in space.choices]
    limit = 0.6 * evaluator.baseline["macs"]

    def costs(levels: Assignment) -> dict[str, float]:
        looks[0] += 1
        return {"macs": evaluator.estimate(space.decode(levels)).values["macs"]}

    monkeypatch.setattr("autocompress.controller.solver.time.monotonic", lambda: float(looks[0]))
    spent, lost = [], []
    for seconds in (0.0, 2_000.0, math.inf):
        looks[0] = 0
        found = solve(space, losses, costs, {"macs": limit}, seconds=seconds)
        assert found is not None
        spent.append(looks[0])
        assert costs(found)["macs"] <= limit
        lost.append(sum(float(t[k]) for t, k in zip(losses, found, strict=True)))
    assert spent == sorted(spent)
    assert lost == sorted(lost, reverse=True)
    levels = sum(len(choice.levels) for choice in space.choices)
    assert spent[0] <= 6 * levels < spent[2]
    assert spent[1] <= 2_000 + 6 * levels


def test_solve_says_when_nothing_fits() -> None:
    space, evaluator = make_space(3), AnalyticEvaluator(3)
    losses = [np.arange(len(c.levels), dtype=float) for c in space.choices]
    found = solve(
        space, losses, lambda a: evaluator.estimate(space.decode(a)).values, {"latency_ms": 0.1}
    )
    assert found is None


def test_solve_begins_from_what_is_known_to_be_cheap() -> None:
    """Where the hardest levels are expensive and no single change makes them cheaper."""
    space = make_space(2)
    sizes = [len(c.levels) for c in space.choices]
    losses = [np.arange(n, dtype=float) for n in sizes]

    def costs(levels: tuple[int, ...]) -> dict[str, float]:
        return {"latency_ms": 1.0 if set(levels) == {1} else 10.0 + len(set(levels))}

    fitting = [a for a in itertools.product(*map(range, sizes)) if costs(a)["latency_ms"] <= 2.0]
    assert fitting == [(1, 1)]
    assert solve(space, losses, costs, {"latency_ms": 2.0}) is None
    assert solve(space, losses, costs, {"latency_ms": 2.0}, cheap=(1, 1)) == (1, 1)
    assert solve(space, losses, costs, {"latency_ms": 0.5}, cheap=(1, 1)) is None


@pytest.mark.parametrize("share", [0.01, 0.02, 0.03, 0.06, 0.12])
@pytest.mark.parametrize("seed", range(6))
def test_solve_finds_something_wherever_something_fits(share: float, seed: int) -> None:
    """Products of widths and bits, two limits, far below any point that is linearized at."""
    layers = 14
    space, evaluator = make_space(layers, bits=True), AnalyticEvaluator(layers, seed=seed)
    rng = np.random.default_rng(seed)
    losses = [np.cumsum(rng.uniform(0, 1, len(c.levels))) for c in space.choices]

    def costs(levels: tuple[int, ...]) -> dict[str, float]:
        policy = space.decode(levels)
        each = [policy[f"l{i}"] for i in range(layers)]
        kept = [1.0, *(1.0 - p.prune_ratio for p in each)]
        areas = [a * b for a, b in itertools.pairwise(kept)]
        speed = [0.2 if p.integer else 1.0 for p in each]
        bits = [p.weight_bits for p in each]
        return {
            "latency_ms": sum(map(math.prod, zip(evaluator.cost, areas, speed, strict=True))),
            "size_bytes": sum(map(math.prod, zip(areas, bits, strict=True))),
        }

    whole = costs(space.mildest)
    limits = {name: share * value for name, value in whole.items()}
    assert all(costs(space.hardest)[name] <= limit for name, limit in limits.items())
    for polish in (False, True):
        found = solve(space, losses, costs, limits, polish=polish)
        assert found is not None
        assert all(costs(found)[name] <= limit for name, limit in limits.items())


@given(st.data())
@settings(max_examples=40)
def test_the_cheapest_is_the_least_of_all_additive_costs(data: st.DataObject) -> None:
    """Costs of any order over the levels; the student, however cheap, is left alone."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    costs = [[data.draw(numbers) for _ in range(n)] for n in sizes]
    levels = [tuple({"prune_ratio": i / 8} for i in range(n)) for n in sizes]
    choices = [
        Choice(f"l{i}/prune_ratio", "prune_ratio", (f"l{i}",), each)
        for i, each in enumerate(levels)
    ]
    student = Choice("student", "student", (), ({"student": None}, {"student": "small"}))
    space = Space((*choices, student), Inventory((), (), ((1,),), "a", "w"))

    def total(assignment: Assignment) -> float:
        *rest, other = assignment
        return sum(c[level] for c, level in zip(costs, rest, strict=True)) - 1000.0 * other

    def near(at: Assignment) -> Callable[[int, int], Mapping[str, float]]:
        return lambda place, level: {"macs": total((*at[:place], level, *at[place + 1 :]))}

    found = cheapest(space, near, "macs", space.hardest)
    every = itertools.product(*(range(n) for n in sizes), (0,))
    assert total(found) == min(map(total, every))
    assert found[-1] == 0

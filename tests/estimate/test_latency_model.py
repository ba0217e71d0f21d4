"""The latency model's predictions, on times that are known to add up."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from known_times import kernel_ms, known_model, random_policies, true_ms
from numpy.typing import NDArray
from scipy.stats import spearmanr
from small_networks import example, make

from autocompress.errors import PolicyError
from autocompress.estimate import latency_fit
from autocompress.estimate import latency_model as module
from autocompress.estimate.kernel_table import KernelTable
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_fit import Problem, fit
from autocompress.estimate.latency_model import LatencyModel, choose_variants
from autocompress.estimate.latency_row import FEATURES, Row
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space
from autocompress.policy.space_config import SpaceConfig


def test_additive_times_are_recovered(plan: LayerPlan, space: Space) -> None:
    model = known_model(plan, space)
    held_out = random_policies(space, 60, seed=11)
    predicted = np.array([model.predict(p)[0] for p in held_out])
    true = np.array([true_ms(plan, p) for p in held_out])
    base = true_ms(plan, Policy())
    assert np.abs(predicted - true).mean() < 0.02 * base
    assert spearmanr(predicted, true).statistic > 0.99
    assert model.predict(Policy())[0] == pytest.approx(base, rel=0.02)


def test_the_stated_error_covers_the_true_one(plan: LayerPlan, space: Space) -> None:
    model = known_model(plan, space)
    inside = 0
    for policy in random_policies(space, 60, seed=12):
        ms, sigma = model.predict(policy)
        inside += abs(ms - true_ms(plan, policy)) <= 1.96 * sigma
    assert inside >= 54


def test_unmeasured_models_make_it_unsure(plan: LayerPlan, space: Space) -> None:
    table = KernelTable({k.key: kernel_ms(k) for k in plan.space_kernels(space)})
    bare = LatencyModel(plan, table, 1.0, 1.0)
    policy = random_policies(space, 1, seed=3)[0]
    assert bare.predict(policy)[1] > 5 * known_model(plan, space).predict(policy)[1]


def test_an_observation_moves_the_prediction_towards_it(plan: LayerPlan, space: Space) -> None:
    model = known_model(plan, space)
    policy = random_policies(space, 1, seed=4)[0]
    before, _ = model.predict(policy)
    target = before * 1.5
    for _ in range(30):
        model.observe(policy, target / model.reference_ms)
    assert abs(model.predict(policy)[0] - target) < abs(before - target) / 2


def test_predictions_scale_with_the_uncompressed_model(plan: LayerPlan, space: Space) -> None:
    model = known_model(plan, space)
    policy = random_policies(space, 1, seed=5)[0]
    ms, sigma = model.predict(policy)
    model.baseline_ms *= 3
    assert model.predict(policy) == pytest.approx((3 * ms, 3 * sigma))


def test_students_cost_what_was_measured(plan: LayerPlan, space: Space) -> None:
    model = known_model(plan, space)
    model.students["tiny"] = 0.25
    assert model.predict(Policy(student="tiny"))[0] == pytest.approx(0.25 * model.baseline_ms)
    with pytest.raises(PolicyError, match="other"):
        model.predict(Policy(student="other"))


def _rows(count: int, kernels: int, seed: int) -> tuple[list[Row], NDArray[np.float64]]:
    """Models of random features and a few kernels each, and the uncompressed one's features."""
    rng = np.random.default_rng(seed)
    base = np.zeros(len(FEATURES))
    base[[0, 4, 6]] = 1.0, 20.0, 100.0
    rows = []
    for _ in range(count):
        used = rng.choice(kernels, min(kernels, 5), replace=False)
        own = {f"k{k}": float(rng.uniform(0.05, 0.2)) for k in used}
        rows.append(Row(base * rng.uniform(0.3, 1.0, len(base)), own))
    return rows, base


@pytest.mark.parametrize("kernels", [0, 8])
def test_the_fit_is_the_posterior_where_nothing_is_negative(kernels: int) -> None:
    """Against the normal equations of a regression on features and kernels, each with its prior."""
    rows, base = _rows(12, kernels, 0)
    times = [
        0.05 + 1.2 * r.features[0] + 0.01 * r.features[4] + 0.004 * r.features[6] for r in rows
    ]
    times = [
        t + 0.2 * r.kernels.get("k1", 0) - 0.1 * r.kernels.get("k2", 0)
        for t, r in zip(times, rows, strict=True)
    ]
    found = fit(rows, times, base)

    def quantities(row: Row) -> NDArray[np.float64]:
        return np.array(
            [1.0, *row.features, *(row.kernels.get(f"k{k}", 0.0) for k in range(kernels))]
        )

    expected, spread = latency_fit._expectation(base)
    mean = np.concatenate([expected, np.zeros(kernels)])
    prior = np.concatenate([spread, np.full(kernels, latency_fit._CORRECTION)]) ** -2.0
    noise = latency_fit._noise(np.array(times), max(times))
    x = np.array([quantities(r) for r in rows])
    precision = (x.T / noise**2) @ x + np.diag(prior)
    closed = np.linalg.solve(precision, x.T @ (times / noise**2) + mean * prior)
    assert (closed[: len(expected)] >= 0).all()
    (probe,), _ = _rows(1, kernels, 1)
    at = quantities(probe)
    ms, sigma = found.predict(probe)
    assert ms == pytest.approx(at @ closed, rel=1e-5)
    own = at @ np.linalg.solve(precision, at) + latency_fit._noise(ms, max(times)) ** 2
    assert sigma == pytest.approx(found.sigma * own**0.5, rel=1e-5)
    # a kernel that no model had is as uncertain as before
    new = Row(probe.features, {**probe.kernels, "new": 0.5})
    assert found.predict(new)[0] == ms
    added = (0.5 * latency_fit._CORRECTION) ** 2
    assert found.predict(new)[1] == pytest.approx(found.sigma * (own + added) ** 0.5, rel=1e-5)


def test_what_a_kernel_takes_within_models_is_learned(plan: LayerPlan, space: Space) -> None:
    """Kernels that take 0.6 to 1.4 times as long as in the table, whatever stands around them."""
    rng = np.random.default_rng(1)
    factor = {k.key: rng.uniform(0.6, 1.4) for k in plan.space_kernels(space)}

    def within(policy: Policy) -> float:
        times = plan.row(policy, kernel_ms, 1 << 20).kernels
        return 0.004 + sum(factor[k] * ms for k, ms in times.items())

    base = within(Policy())
    table = KernelTable({k.key: kernel_ms(k) for k in plan.space_kernels(space)})
    model = LatencyModel(plan, table, base, base)
    held_out = random_policies(space, 60, seed=11)
    true = np.array([within(p) for p in held_out])
    errors, covered = [], []
    for policies in (choose_variants(space, 24), random_policies(space, 120, seed=12)):
        for policy in policies:
            model.observe(policy, within(policy) / base)
        found = np.array([model.predict(p) for p in held_out])
        errors.append(float(np.abs(found[:, 0] - true).mean()) / base)
        covered.append(int((np.abs(found[:, 0] - true) <= 1.96 * found[:, 1]).sum()))
    assert errors[1] < 0.5 * errors[0]
    assert min(covered) >= 54


def test_features_count_kernels_and_borders_by_hand(plan: LayerPlan) -> None:
    """first (int8) -> deep (float) -> last (int8) -> head (float)."""
    int8 = LayerPolicy(weight_bits=8, activation_bits=8)
    found = dict(
        zip(
            FEATURES,
            plan.row(Policy({"first": int8, "last": int8}), lambda k: 1.0, 1 << 20).features,
            strict=True,
        )
    )
    assert (found["int8_kernels"], found["float_kernels"]) == (2, 2)
    assert (found["int8_ms"], found["float_ms"]) == (2, 2)
    assert (found["to_int8"], found["to_float"]) == (2, 2)
    # the image enters `first`, 8 maps of 8 x 8 enter `last`
    assert found["to_int8_values"] == pytest.approx((3 * 64 + 8 * 64) / 1e3)
    # 8 maps of 8 x 8 leave `first`; 12 maps of 4 x 4 leave `last`
    assert found["to_float_values"] == pytest.approx((8 * 64 + 12 * 16) / 1e3)


def test_what_lies_beyond_the_caches_counts_by_itself(
    plan: LayerPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of the maps that change (8 x 8 x 8) exceeds a cache of 300 values."""
    from autocompress.estimate import latency_row

    monkeypatch.setattr(latency_row, "_NEAR", 300)
    int8 = LayerPolicy(weight_bits=8, activation_bits=8)
    policy = Policy({"first": int8, "last": int8})
    weights = plan.weight_bytes(policy)
    near, far = (plan.row(policy, lambda k: 1.0, f).features for f in (weights, weights // 4))
    found = dict(zip(FEATURES, far, strict=True))
    assert found["to_float_far"] == pytest.approx((8 * 64 - 300) / 1e3)
    assert found["far_weights"] == pytest.approx((weights - 2 * (weights // 4)) / 2**20)
    assert dict(zip(FEATURES, near, strict=True))["far_weights"] == 0
    # first: 8 filters of 3 channels in 8 bits; the second layer stays in 32
    (kernel,) = plan.layers(policy)[0].kernels
    assert (kernel.precision, kernel.weight_bytes) == ("int8", 8 * 3 * 9)


@pytest.mark.parametrize("name", ["nested", "unet_transposed", "residual", "depthwise", "concat"])
def test_the_kernels_of_a_space_are_those_of_all_its_policies(name: str) -> None:
    """Against every assignment of the ratios, for the layers that read few groups."""
    inventory = take_inventory(make(name), example(name))
    settings = CompressionSettings(prune_residual=True)
    plan = LayerPlan(inventory, settings)
    rule = {"match": "*", "prune_ratio": [0, 0.25, 0.5]}
    config = {"prune_residual": True, "rules": [rule]}
    space = SpaceConfig.read(config).bind(inventory)
    assignments = product(*(range(len(c.levels)) for c in space.choices))
    wanted = plan.kernels(space.decode(assignment) for assignment in assignments)
    assert set(plan.space_kernels(space)) == set(wanted)


def test_of_too_many_widths_an_even_spread_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from autocompress.estimate import latency_features

    inventory = take_inventory(make("nested"), example("nested"))
    plan = LayerPlan(inventory, CompressionSettings())
    ratios = [0, 0.125, 0.25, 0.375, 0.5]
    space = SpaceConfig.read({"rules": [{"match": "*", "prune_ratio": ratios}]}).bind(inventory)

    def widths() -> list[int]:
        found = plan.space_kernels(space)
        return sorted({k.in_channels for k in found if (k.kernel_size, k.groups) == ((1, 1), 1)})

    assert widths() == list(range(16, 33, 2))
    monkeypatch.setattr(latency_features, "_MOST_WIDTHS", 3)
    assert widths() == [16, 24, 32]


def test_variants_differ_and_never_are_the_uncompressed_model(space: Space) -> None:
    chosen = choose_variants(space, 24, seed=1)
    assert len({p.digest for p in chosen}) == len(chosen) == 24
    assert all(p.layers for p in chosen)
    assert [p.digest for p in choose_variants(space, 24, seed=1)] == [p.digest for p in chosen]


def _problem(count: int, seed: int) -> Problem:
    """Random models of known coefficients, some at or near zero, 12 kernels, 5 % of noise."""
    draw = np.random.default_rng(seed)
    base = draw.uniform(0.2, 1.0, len(FEATURES))
    expected, spread = latency_fit._expectation(base)
    x = np.hstack([np.ones((count, 1)), base * draw.uniform(0.1, 1.0, (count, len(base)))])
    true = np.maximum(expected + 0.5 * spread * draw.normal(size=len(expected)), 0)
    kernels = draw.uniform(0, 0.2, (count, 12)) * (draw.uniform(size=(count, 12)) < 0.3)
    y = (x @ true + kernels @ draw.normal(0, 0.3, 12)) * draw.lognormal(0, 0.05, count)
    return Problem(x, kernels, y, expected, spread, latency_fit._noise(y, y.max()))


def _solved_without(problem: Problem, i: int) -> float:
    """Error of one model under the fit without it, solved anew; in ms."""
    x, kernels, y, noise = (
        np.delete(a, i, axis=0) for a in (problem.x, problem.kernels, problem.y, problem.noise)
    )
    rest = replace(problem, x=x, kernels=kernels, y=y, noise=noise)
    coefficients = rest.solve()
    own = problem.x[i] @ coefficients + problem.kernels[i] @ rest.corrections(coefficients)
    return float(problem.y[i] - own)


@pytest.mark.parametrize("count", [60, 200])
@pytest.mark.parametrize("seed", range(4))
def test_the_closed_form_is_what_solving_without_each_model_finds(count: int, seed: int) -> None:
    problem = _problem(count, seed)
    coefficients = problem.solve()
    held = np.where(coefficients > 1e-4 * problem.spread, problem.spread, 0.0)
    quick, root = problem.left_out(held)
    # errors stand there as shares of their standard deviation: undo that by brute force
    own = np.hstack([problem.x * held, latency_fit._CORRECTION * problem.kernels])
    total = own @ own.T + np.diag(problem.noise**2)
    others = [[j for j in range(count) if j != i] for i in range(count)]
    deviation = np.array(
        [
            (total[i, i] - total[i, o] @ np.linalg.solve(total[np.ix_(o, o)], total[o, i])) ** 0.5
            for i, o in enumerate(others)
        ]
    )
    slow = np.array([_solved_without(problem, i) for i in range(count)])
    rms = np.sqrt(np.mean(slow**2))
    assert np.sqrt(np.mean((quick * deviation) ** 2)) == pytest.approx(rms, rel=0.05)
    assert np.corrcoef(quick * deviation, slow)[0, 1] > 0.99
    if (coefficients > 0.1 * problem.spread).all():  # nothing held at zero: exact
        assert quick * deviation == pytest.approx(slow, abs=1e-5 * rms)
    np.testing.assert_allclose(root @ root.T, own.T @ np.linalg.solve(total, own), atol=1e-8)


def test_a_copy_learns_on_its_own(plan: LayerPlan, space: Space) -> None:
    first = known_model(plan, space)
    policy = random_policies(space, 1, seed=6)[0]
    before = first.predict(policy)
    second = first.copy()
    assert second.predict(policy) == before
    second.observe(policy, 2 * before[0] / first.reference_ms)
    assert second.predict(policy)[0] > before[0]
    assert first.predict(policy) == before
    first.observe(policy, 2 * before[0] / first.reference_ms)
    assert first.predict(policy) == second.predict(policy)


def test_a_fit_rests_on_the_first_and_the_latest_models(
    plan: LayerPlan, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uncompressed model and 19 others, then the latest 30 of 60."""
    monkeypatch.setattr(module, "_FIRST", 20)
    monkeypatch.setattr(module, "_LATEST", 30)
    model = known_model(plan, space)
    drawn = random_policies(space, 36, seed=8)
    for policy in drawn:
        model.observe(policy, 1.3 * true_ms(plan, policy) / model.reference_ms)
    measured = [*model.measured[:19], *model.measured[-30:]]
    few = replace(model, measured=measured, _rows=[], _fit=None)
    policy = random_policies(space, 1, seed=9)[0]
    assert model.predict(policy) == few.predict(policy)
    monkeypatch.setattr(module, "_LATEST", 60)
    model.observe(policy, 1.0)
    assert model.predict(policy) != few.predict(policy)

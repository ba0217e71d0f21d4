"""The fit of sensitivities against an exact solver of the same least squares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from autocompress.controller.sensitivity import Sensitivity, _fitted
from autocompress.policy.inventory import Inventory
from autocompress.policy.space import Assignment, Choice, Space

BLOCKS, LAYERS = 6, 20
FLOOR, BITS = 0.1, 0.001
"""Nats of batch norms estimated anew, and of one layer in 8 bits."""
GONE = np.array([0.01, 0.02, 0.03, 0.05, 0.08, 0.2])
"""Nats of each block beside that."""


def space() -> Space:
    """Blocks that may go, and layers that may have 8 bits."""
    gone, bits = ({"block": "keep"}, {"block": "gone"}), ({"weight_bits": 32}, {"weight_bits": 8})
    choices = [Choice(f"b{i}/block", "block", (f"b{i}",), gone) for i in range(BLOCKS)]
    choices += [Choice(f"{i}/bits", "bits", (str(i),), bits) for i in range(LAYERS)]
    return Space(tuple(choices), Inventory((), (), (), "", ""))


def harm(assignment: Assignment) -> float:
    """What blocks and bits do adds up; the first block that goes costs the floor, too."""
    gone = np.array(assignment[:BLOCKS])
    return float(GONE @ gone + FLOOR * gone.any() + BITS * sum(assignment[BLOCKS:]))


@pytest.mark.parametrize("probes", [1, 7, 12, 1000])
def test_what_is_not_reached_shares_what_its_kind_does_together(probes: int) -> None:
    asked: list[Assignment] = []

    def screen(assignment: Assignment) -> float:
        asked.append(assignment)
        return harm(assignment)

    sensitivity = Sensitivity(space(), screen)
    sensitivity.probe(lambda: len(asked) < probes, hurried=True)
    assert asked[0] == (0,) * BLOCKS + (1,) * LAYERS
    for loss in sensitivity.losses[BLOCKS:]:
        assert loss[0] == 0
        assert 0 < loss[1] <= BITS * (1 + 1e-9)


def test_the_floor_is_not_charged_to_any_choice() -> None:
    """One layer in 8 bits loses less than any block; what both have in common is nothing."""
    sensitivity = Sensitivity(space(), harm)
    sensitivity.probe(lambda: True)
    assert sensitivity.order == tuple(range(BLOCKS))
    steps = [sensitivity.losses[i][1] for i in range(BLOCKS)]
    np.testing.assert_allclose(steps[1:], GONE[1:], atol=0.011)
    draw = np.random.default_rng(0)
    for _ in range(60):
        one = tuple(int(x) for x in draw.integers(0, 2, BLOCKS + LAYERS))
        sensitivity.observe(one, harm(one))
    sensitivity.refit()
    np.testing.assert_allclose([sensitivity.losses[i][1] for i in range(BLOCKS)], GONE, atol=0.012)


@pytest.mark.parametrize(("choices", "rows"), [(12, 20), (12, 200), (40, 30)])
def test_the_fit_is_the_bounded_least_squares(choices: int, rows: int) -> None:
    """With fewer rows than unknowns, more of them, and unknowns that no row holds."""
    rng, levels = np.random.default_rng(choices + rows), 4
    each = rng.integers(0, levels, (rows, choices))
    each[:, 0] = 0
    matrix = np.zeros((rows, choices * levels))
    for row, assignment in enumerate(each):
        for choice, level in enumerate(assignment):
            matrix[row, choice * levels + level] = level > 0
    prior = rng.uniform(1e-6, 0.1, choices * levels)
    target = matrix @ (prior * rng.uniform(-0.5, 2, len(prior)))
    target = np.maximum(target, 0.0)
    weight, anchor = 1.0 / (0.1 + target), 0.3 / (0.02 + prior)
    full = np.concatenate([matrix * weight[:, None], np.diag(anchor)])
    wanted = lsq_linear(
        full, np.concatenate([target * weight, prior * anchor]), (0, np.inf), method="bvls"
    ).x
    found = _fitted(matrix, target, prior)
    assert (found >= 0).all()
    assert (wanted == 0).any()
    np.testing.assert_allclose(found, wanted, atol=1e-5)

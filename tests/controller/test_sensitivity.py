"""The fit of sensitivities against an exact solver of the same least squares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from autocompress.controller.sensitivity import _fitted


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

"""Heads in closed form beside scikit-learn's ridge regression."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from autocompress.cascade.heads import HeadMoments


@pytest.mark.parametrize("ridge", [1e-4, 0.3])
def test_a_head_is_the_ridge_regression_of_all_batches(ridge: float) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 7)) @ rng.standard_normal((7, 7)) + 3
    wanted = features @ rng.standard_normal((7, 4)) + rng.standard_normal((300, 4)) - 2
    sums = HeadMoments(7, 4)
    for start in range(0, 300, 64):
        sums.add(features[start : start + 64], wanted[start : start + 64])
    head = sums.head(ridge)
    # scikit-learn's penalty stands beside a sum over samples
    alpha = ridge * len(features) * features.var(axis=0).mean()
    other = Ridge(alpha=alpha).fit(features, wanted)
    np.testing.assert_allclose(head.weight, other.coef_.T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(head.bias, other.intercept_, rtol=1e-7, atol=1e-9)


def test_features_that_never_change_are_no_harm() -> None:
    sums = HeadMoments(2, 1)
    sums.add(np.ones((5, 2)), np.full((5, 1), 3.0))
    head = sums.head()
    assert np.ones(2) @ head.weight + head.bias == pytest.approx(3.0)


def test_of_nothing_there_is_no_head() -> None:
    with pytest.raises(ValueError, match="no inputs"):
        HeadMoments(2, 1).head()

"""Bounds beside the sums of probabilities that define them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial

from autocompress.cascade.bound import (
    clopper_pearson,
    inputs_needed,
    largest_loss,
    latency_p_value,
    loss_p_value,
    score,
)


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (3, 40), (40, 40), (250, 1000)])
def test_the_interval_of_a_rate_is_scipys(hits: int, count: int) -> None:
    wanted = binomtest(hits, count).proportion_ci(0.95, "exact")
    assert clopper_pearson(hits, count, 0.95) == pytest.approx((wanted.low, wanted.high))


def _all_counts(count: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(count + 1) for b in range(count + 1 - a)]


@pytest.mark.parametrize("allowed", [0.05, 0.2])
def test_the_test_errs_as_often_as_it_may_at_most(allowed: float) -> None:
    """Over all counts of few inputs, for rates at the bound and beyond it."""
    count, alpha = 25, 0.05
    pairs = _all_counts(count)
    passed = [pair for pair in pairs if loss_p_value(*pair, count, allowed) <= alpha]
    assert passed
    assert len(passed) < len(pairs) / 2
    worst = 0.0
    for gain in np.linspace(0, (1 - allowed) / 2, 40):
        for more in (0.0, 0.03):
            loss = gain + allowed + more
            if loss + gain <= 1:
                rates = [loss, gain, max(0.0, 1 - loss - gain)]
                each = multinomial.pmf([(a, b, count - a - b) for a, b in passed], count, rates)
                worst = max(worst, float(np.sum(each)))
    assert worst <= alpha
    assert worst > alpha / 5, "it would be of no use"


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (1, 0), (2, 3), (4, 1)])
def test_the_p_value_is_the_sum_over_all_counts_that_score_as_high(losses: int, gains: int) -> None:
    count, allowed = 30, 0.2
    pairs = np.array(_all_counts(count))
    reached = score(pairs[:, 0], pairs[:, 1], count, allowed)
    as_high = reached >= score(np.float64(losses), np.float64(gains), count, allowed) - 1e-12
    low, high = clopper_pearson(gains, count, 0.999)
    worst = 0.0
    for gain in np.linspace(low, min(high, (1 - allowed) / 2), 400):
        chosen = [(a, b, count - a - b) for a, b in pairs[as_high]]
        each = multinomial.pmf(chosen, count, [gain + allowed, gain, 1 - 2 * gain - allowed])
        worst = max(worst, float(np.sum(each)))
    assert loss_p_value(losses, gains, count, allowed) == pytest.approx(worst + 0.001, abs=2e-3)


def test_the_largest_loss_is_where_the_test_begins_to_pass() -> None:
    bound = largest_loss(6, 9, 800)
    assert loss_p_value(6, 9, 800, bound + 1e-6) <= 0.05
    assert loss_p_value(6, 9, 800, bound - 1e-4) > 0.05
    # without gains it is about the bound of a plain rate, whose test needs no nuisance
    plain = clopper_pearson(4, 1000, 0.90)[1]
    assert plain <= largest_loss(4, 0, 1000) <= 1.2 * plain


def test_as_many_inputs_are_needed_as_it_says() -> None:
    count = inputs_needed(0.002)
    assert loss_p_value(0, 0, count, 0.002) <= 0.05
    assert loss_p_value(0, 0, int(0.98 * count), 0.002) > 0.05
    assert 1497 <= count <= 1600, "ln(0.05) / ln(0.998) = 1497 without a nuisance"


def test_a_mean_latency_is_shown_as_often_by_chance_as_it_may() -> None:
    """One stage handed on to: the p-value is that of the binomial test."""
    count, stages, most = 400, [1.0, 4.0], 2.0
    for handed in (60, 80, 90):
        wanted = binomtest(handed, count, (most - stages[0]) / stages[1], "less").pvalue
        assert (
            latency_p_value([handed], count, stages, most) == pytest.approx(wanted, abs=1e-6)
            or wanted > 0.5
        )
    assert latency_p_value([0], count, [2.5, 4.0], most) == 1.0


def test_two_shares_are_bounded_together() -> None:
    one = latency_p_value([60], 400, [1.0, 4.0], 2.0)
    both = latency_p_value([60, 30], 400, [1.0, 2.0, 4.0], 2.0)
    assert both > one
    assert latency_p_value([60, 0], 400, [1.0, 4.0, 0.0], 2.0) == pytest.approx(2 * one, rel=1e-3)

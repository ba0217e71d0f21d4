"""The forecast's shape, and expected improvement against drawn accuracies."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.controller.expected_improvement import QualityForecast, expected_improvement
from autocompress.policy.policy import Policy
from autocompress.results.front import ParetoFront
from autocompress.results.metric import ACCURACY, LATENCY, Measurement
from autocompress.results.trial import Trial

REFERENCE = [0.8, 2.0]
PAIRS = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), max_size=12)


def front(*points: tuple[float, float]) -> ParetoFront:
    trials = [
        Trial(i, Policy(), measurement=Measurement({"accuracy": a, "latency_ms": ms}))
        for i, (a, ms) in enumerate(points)
    ]
    return ParetoFront.of(trials, (ACCURACY, LATENCY))


def area(points: list[tuple[float, float]]) -> float:
    """Of the staircase of (accuracy, latency) points over the reference, by strips of latency."""
    inside = [(a, ms) for a, ms in points if a > REFERENCE[0] and ms < REFERENCE[1]]
    edges = sorted({ms for _, ms in inside} | {REFERENCE[1]})
    return sum(
        (right - left) * (max(a for a, ms in inside if ms <= left) - REFERENCE[0])
        for left, right in itertools.pairwise(edges)
    )


@given(PAIRS, st.lists(st.floats(0, 6), min_size=2, max_size=5))
def test_more_divergence_never_forecasts_more(
    seen: list[tuple[float, float]], asked: list[float]
) -> None:
    forecast = QualityForecast(seen, 0.9, 0.005)
    found = [forecast(kl) for kl in sorted(asked)]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(found))
    assert forecast.sigma >= 0.005
    if not any(kl == 0 for kl, _ in seen):
        assert forecast(0.0) == pytest.approx(0.9, abs=1e-4)


def test_a_falling_record_is_met_exactly_and_joined_by_straight_lines() -> None:
    forecast = QualityForecast([(1.0, 0.5), (0.5, 0.8)], 0.9, 0.005)
    assert [forecast(k) for k in (0.0, 0.5, 1.0, 9.0)] == pytest.approx([0.9, 0.8, 0.5, 0.5])
    assert forecast(0.25) == pytest.approx(0.85)
    assert forecast.sigma == 0.005


def test_a_rise_is_pooled_and_makes_the_forecast_uncertain() -> None:
    forecast = QualityForecast([(0.5, 0.7), (0.6, 0.8)], 0.9, 0.005)
    assert forecast(0.5) == forecast(0.6) == pytest.approx(0.75)
    assert forecast.sigma == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("accuracy", "sigma", "latency"),
    [(0.87, 0.01, 0.9), (0.9, 0.02, 1.5), (0.84, 0.01, 0.8), (0.81, 0.03, 0.7), (0.7, 0.01, 0.5)],
)
def test_the_gain_is_the_mean_over_drawn_accuracies(
    accuracy: float, sigma: float, latency: float
) -> None:
    """20,000 draws: their mean is off by more than five standard errors once in a million runs.

    Kinks cost the nine-point rule up to a twentieth of sigma times the strip's width.
    """
    points = [(0.85, 0.8), (0.88, 1.0), (0.9, 1.6)]
    draw = random.Random(0)
    before = area(points)
    gains = [
        area([*points, (draw.gauss(accuracy, sigma), latency)]) - before for _ in range(20_000)
    ]
    mean = sum(gains) / len(gains)
    error = math.sqrt(sum((g - mean) ** 2 for g in gains)) / len(gains)
    found = expected_improvement(
        front(*points), REFERENCE, accuracy, sigma, {"latency_ms": latency}
    )
    assert abs(found - mean) <= 5 * error + sigma / 20 * (REFERENCE[1] - latency)
    assert found >= 0


def test_certain_gains_are_differences_of_areas() -> None:
    points = [(0.85, 0.8), (0.9, 1.6)]
    for accuracy, latency in [(0.87, 1.0), (0.84, 0.9), (0.95, 0.5), (0.79, 0.1), (0.9, 2.5)]:
        found = expected_improvement(
            front(*points), REFERENCE, accuracy, 0.0, {"latency_ms": latency}
        )
        assert found == pytest.approx(area([*points, (accuracy, latency)]) - area(points))


def test_the_first_policy_gains_its_whole_rectangle() -> None:
    assert expected_improvement(front(), REFERENCE, 0.9, 0.0, {"latency_ms": 1.0}) == pytest.approx(
        0.1
    )


@pytest.mark.parametrize("above", [-2.0, -0.5, 0.0, 0.7, 3.0])
def test_the_gain_over_nothing_is_the_closed_form(above: float) -> None:
    """E[max(0, X)] of a normal X is sigma (phi(z) + z Phi(z)), times the strip's width."""
    sigma = 0.02
    density = math.exp(-above * above / 2) / math.sqrt(2 * math.pi)
    below = (1 + math.erf(above / math.sqrt(2))) / 2
    exact = sigma * (density + above * below) * (REFERENCE[1] - 1.0)
    accuracy = REFERENCE[0] + above * sigma
    found = expected_improvement(front(), REFERENCE, accuracy, sigma, {"latency_ms": 1.0})
    assert found == pytest.approx(exact, abs=sigma / 20)

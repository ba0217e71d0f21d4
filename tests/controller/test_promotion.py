"""Promotion between rungs, on trials by hand and on populations of known order."""

from __future__ import annotations

import math
import random

import pytest

from autocompress.controller.promotion import by_band, in_doubt, promoted, worst_case
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.metric import Measurement
from autocompress.results.rank import rank_correlation
from autocompress.results.trial import Phase, Trial


def trial(number: int, accuracy: float, ms: float = 1.0, stderr: float = 0.002) -> Trial:
    policy = Policy({"a": LayerPolicy(prune_ratio=number / 100)})
    found = Measurement({"accuracy": accuracy, "latency_ms": ms}, {"accuracy": stderr})
    return Trial(number, policy, Phase("recover", 1, 1), measurement=found)


def test_rank_correlation_is_the_closed_form() -> None:
    """Without ties: 1 - 6 sum d^2 / (n (n^2 - 1))."""
    draw = random.Random(0)
    first, second = draw.sample(range(100), 12), draw.sample(range(100), 12)

    def ranks(values: list[int]) -> list[int]:
        return [sorted(values).index(v) for v in values]

    squares = sum((a - b) ** 2 for a, b in zip(ranks(first), ranks(second), strict=True))
    wanted = 1 - 6 * squares / (12 * (144 - 1))
    assert rank_correlation(list(zip(first, second, strict=True))) == pytest.approx(wanted)


@pytest.mark.parametrize("pairs", [[], [(1, 2), (2, 3)], [(1, 1), (1, 2), (1, 3)]])
def test_too_little_gives_no_correlation(pairs: list[tuple[float, float]]) -> None:
    assert rank_correlation(pairs) is None


def test_who_is_clearly_behind_is_out() -> None:
    """One standard error of a difference is 0.28 points; 1.64 of them are 0.46."""
    done = [trial(0, 0.900), trial(1, 0.8956), trial(2, 0.8951), trial(3, 0.85)]
    assert [t.number for t in in_doubt(done)] == [0, 1]


def test_a_surer_trial_leads() -> None:
    sure, lucky = trial(0, 0.899, stderr=0.001), trial(1, 0.900, stderr=0.01)
    assert worst_case(sure) < worst_case(lucky)
    assert [t.number for t in in_doubt([lucky, sure])] == [0, 1]


def test_every_band_has_its_best_before_any_has_two() -> None:
    ranked = [trial(n, 0.9 - n / 1000, ms) for n, ms in enumerate((0.9, 0.95, 0.1, 0.85, 0.5, 0.2))]
    assert [t.number for t in by_band(ranked, "latency_ms", 3)] == [0, 4, 2]
    assert [t.number for t in by_band(ranked, "latency_ms", 4)] == [0, 4, 2, 1]
    assert [t.number for t in by_band(ranked, "latency_ms", 1)] == [0]
    assert by_band([], "latency_ms", 2) == []


@pytest.mark.parametrize(("forecast", "count"), [("right", 4), ("none", 8), ("wrong", 8)])
def test_the_worse_the_forecast_the_more_go_on(forecast: str, count: int) -> None:
    """Eight trials that noise cannot tell apart."""
    done = [trial(n, 0.9 + n / 1e5, ms=1 + n) for n in range(8)]
    order = {"right": range(8), "none": (3, 6, 1, 4, 5, 2, 7, 0), "wrong": range(7, -1, -1)}[
        forecast
    ]
    before = {t.number: 0.5 + place / 100 for t, place in zip(done, order, strict=True)}
    assert len(promoted(done, before, "latency_ms")) == count
    rho = rank_correlation([(before[t.number], 0.9 + t.number / 1e5) for t in done])
    assert rho is not None
    assert count == max(2, math.ceil(8 * (1 - max(0.0, rho) / 2)))


def test_a_settled_order_opens_no_rung() -> None:
    done = [trial(0, 0.9), trial(1, 0.8), trial(2, 0.7)]
    before = {t.number: 0.1 for t in done}
    assert [t.number for t in promoted(done, before, "latency_ms")] == [0]
    assert promoted([], {}, "latency_ms") == []

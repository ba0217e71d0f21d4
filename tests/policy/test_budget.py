"""Budgets: reading, relative bounds, violations."""

from __future__ import annotations

import pytest

from autocompress.errors import InputError
from autocompress.policy.budget import Budget, Limit

BASELINE = {"latency_ms": 4.0, "macs": 40e6, "params": 270e3, "size_bytes": 1.1e6}


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [
        ("latency<=2ms", "latency_ms", 2.0),
        ("latency <= 2", "latency_ms", 2.0),
        ("latency<=1500us", "latency_ms", 1.5),
        ("latency<=0.5x", "latency_ms", 2.0),
        ("latency_ms<=2", "latency_ms", 2.0),
        ("macs<=50%", "macs", 20e6),
        ("macs<=20M", "macs", 20e6),
        ("params<=100K", "params", 100e3),
        ("size<=1MB", "size_bytes", 1e6),
        ("size<=1e3", "size_bytes", 1e3),
    ],
)
def test_reading(text: str, metric: str, bound: float) -> None:
    limit = Limit.parse(text)
    assert limit.metric == metric
    assert limit.bound(BASELINE) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("latncy<=2ms", "latency"),
        ("latency=2", "latency<=2ms"),
        ("latency<=2 parsecs", "ms"),
        ("latency<=0x", "above 0"),
        ("macs<=1.2.3M", "not a number"),
    ],
)
def test_bad_text_names_the_remedy(text: str, names: str) -> None:
    with pytest.raises(InputError, match=names):
        Limit.parse(text)


def test_violations_are_shares_of_the_bound_and_equality_is_feasible() -> None:
    budget = Budget("latency<=0.5x", size_bytes=1e6)
    values = {"latency_ms": 2.0, "size_bytes": 1.5e6}
    assert budget.violations(values, BASELINE) == pytest.approx(
        {"latency_ms": 0.0, "size_bytes": 0.5}
    )


def test_the_tightest_of_two_limits_on_one_metric_counts() -> None:
    budget = Budget("latency<=3ms", "latency<=0.5x")
    assert budget.violations({"latency_ms": 2.5}, BASELINE)["latency_ms"] == pytest.approx(0.25)


def test_an_unmeasured_metric_is_an_error() -> None:
    with pytest.raises(InputError, match="size_bytes"):
        Budget(size_bytes=10).violations({"macs": 1.0}, BASELINE)

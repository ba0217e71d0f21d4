"""Budgets: reading, relative bounds, violations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.policy.budget import Budget, Limit
from autocompress.policy.costs import BY_NAME, COSTS, extra
from autocompress.results.metric import METRICS

BASELINE = {"latency_ms": 4.0, "sample_ms": 8.0, "macs": 40e6, "params": 270e3, "size_bytes": 1.1e6}


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
        ("latency_p99<=3ms", "latency_p99_ms", 3.0),
        ("memory<=64MB", "peak_memory_bytes", 64e6),
        ("energy<=5mJ", "energy_mj", 5.0),
        ("energy<=0.2J", "energy_mj", 200.0),
        # n samples a second are 1000 / n ms each
        ("throughput>=200/s", "sample_ms", 5.0),
        ("throughput >= 1.5k/s", "sample_ms", 2 / 3),
        ("throughput>=30/min", "sample_ms", 2000.0),
        ("throughput>=2x", "sample_ms", 4.0),
        ("throughput>=400%", "sample_ms", 2.0),
        ("sample_ms<=5", "sample_ms", 5.0),
    ],
)
def test_reading(text: str, metric: str, bound: float) -> None:
    limit = Limit.parse(text)
    assert limit.metric == metric
    assert limit.bound(BASELINE) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("latency_ms<=2", "latency<=2ms"),
        ("latency<=300us", "latency<=0.3ms"),
        ("latency<=40%", "latency<=0.4x"),
        ("memory<=64000kB", "memory<=64MB"),
        ("size<=1500", "size<=1.5kB"),
        ("macs<=20000k", "macs<=20M"),
        ("params<=500", "params<=500"),
        ("energy<=0.2J", "energy<=200mJ"),
        ("throughput>=1.5k/s", "throughput>=1500/s"),
    ],
)
def test_telling(text: str, told: str) -> None:
    assert str(Limit.parse(text)) == told


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("latncy<=2ms", "latency"),
        ("latency=2", "latency<=2ms"),
        ("latency<=2 parsecs", "ms"),
        ("latency<=0x", "above 0"),
        ("macs<=1.2.3M", "not a number"),
        ("throughput<=200/s", "limits throughput by >="),
        ("latency>=2ms", "limits latency by <="),
        ("throughput>=2ms", "no unit of throughput; use one of /s"),
        ("latency_worst<=1ms", "no unit of latency_worst; give a number without one, or x or %"),
        ("throughput>=0/s", "above 0"),
        ("bops<=3", "cannot limit"),
        ("memory<=64", "would be 64 bytes. Give a unit: 'memory<=64MB'"),
        ("size<=0.5", "'size<=0.5%' for a share"),
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


@pytest.mark.parametrize(
    "text", ["throughput>=200/s", "throughput>=2x", "throughput>=7/s", "energy<=5mJ"]
)
def test_a_limit_is_written_as_it_was_read(text: str) -> None:
    assert str(Limit.parse(text)) == text


@given(st.floats(1e-6, 1e9))
def test_every_limit_is_read_again_as_it_is_written(value: float) -> None:
    for metric in BY_NAME:
        if BY_NAME[metric].word:
            for relative in (False, True):
                limit = Limit(metric, value, relative)
                assert Limit.parse(str(limit)) == limit


def test_a_throughput_is_missed_by_the_share_that_its_samples_take_too_long() -> None:
    budget = Budget("throughput>=200/s")
    assert budget.violations({"sample_ms": 5.0}, {}) == {"sample_ms": pytest.approx(0.0)}
    assert budget.violations({"sample_ms": 10.0}, {}) == {"sample_ms": pytest.approx(1.0)}
    assert budget.violations({"sample_ms": 2.5}, {}) == {"sample_ms": pytest.approx(-0.5)}


def test_a_share_of_nothing_is_kept_by_nothing_alone() -> None:
    budget, base = Budget("memory<=0.5x"), {"peak_memory_bytes": 0.0}
    assert budget.violations({"peak_memory_bytes": 0.0}, base)["peak_memory_bytes"] <= 0
    assert budget.violations({"peak_memory_bytes": 4096.0}, base)["peak_memory_bytes"] > 100


def test_every_cost_is_a_metric_of_every_study() -> None:
    for cost in COSTS:
        assert METRICS[cost.name].goal == "minimize"
        assert METRICS[cost.name].unit == cost.unit
    assert extra(["latency_ms", "macs", "quality"]) == frozenset()
    assert extra(["energy_mj", "quality"]) == {"energy_mj"}

"""Everything that a compressed model costs: the one place that names it.

Budgets, measuring, tables, report and MLflow read it here. A cost that is added needs a row, and
what measures it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Source = Literal["formula", "timing", "memory", "energy", "throughput", "targets"]

_TIMES = {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {**_COUNTS, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}


@dataclass(frozen=True, slots=True)
class CostMetric:
    """One cost; less of it is better.

    Args:
        name: in measurements.
        word: in budgets and columns; empty where a budget cannot limit it.
        unit: for people.
        title: of axes.
        units: unit of a budget, in small letters, to its factor.
        source: what tells it: a formula over the policy (or the file's size), the timing beside the
            uncompressed model, a measurement of its own that only some studies ask for, or timings
            on further targets.
        inverse: people say its reciprocal, in this unit, of which more is better: a budget limits
            that from below.
    """

    name: str
    word: str
    unit: str
    title: str
    units: Mapping[str, float] = field(default_factory=dict)
    source: Source = "formula"
    inverse: str = ""

    @property
    def said(self) -> str:
        """In a sentence, before its value with the unit."""
        return self.word if self.inverse else self.title.partition(",")[0]

    @property
    def asked(self) -> bool:
        """Whether it is measured only where a study asks for it, or verifies."""
        return self.source not in ("formula", "timing") or self.name == P99


P99 = "latency_p99_ms"
MOST_TARGETS = 4
"""Of one study, the first included."""
WORST = "latency_worst"
ON_OTHERS = tuple(f"latency_{i}_ms" for i in range(2, MOST_TARGETS + 1))
"""Latency on the second target, the third, ..."""
COSTS = (
    CostMetric("latency_ms", "latency", "ms", "latency, ms", _TIMES, "timing"),
    CostMetric(P99, "latency_p99", "ms", "latency p99, ms", _TIMES, "timing"),
    CostMetric(
        *("sample_ms", "throughput", "ms", "time per sample, ms"),
        {"": 1e3, "/s": 1e3, "k/s": 1.0, "/min": 6e4},
        "throughput",
        "/s",
    ),
    CostMetric("macs", "macs", "multiply-adds", "multiply-adds", _COUNTS),
    CostMetric("params", "params", "weights", "parameters", _COUNTS),
    CostMetric("size_bytes", "size", "bytes", "file size, bytes", _BYTES),
    CostMetric("peak_memory_bytes", "memory", "bytes", "peak memory, bytes", _BYTES, "memory"),
    CostMetric(
        *("energy_mj", "energy", "mJ", "energy per inference, mJ"),
        {"": 1.0, "uj": 1e-3, "mj": 1.0, "j": 1e3},
        "energy",
    ),
    *(
        CostMetric(
            name, name.removesuffix("_ms"), "ms", f"latency on target {i}, ms", _TIMES, "targets"
        )
        for i, name in enumerate(ON_OTHERS, 2)
    ),
    CostMetric(
        WORST, WORST, "of base", "worst latency of all targets, of base", {"": 1.0}, "targets"
    ),
    CostMetric("bops", "", "bit operations", "bit operations"),
)
BY_NAME: Mapping[str, CostMetric] = {cost.name: cost for cost in COSTS}
"""Name in measurements to what it is."""
BY_WORD: Mapping[str, CostMetric] = {cost.word: cost for cost in COSTS if cost.word}
"""Word in budgets to what it is."""
EXTRA = tuple(cost for cost in COSTS if cost.asked)
"""What only some studies measure."""


def said(name: str) -> str:
    """A metric in a sentence: ``peak memory`` for ``peak_memory_bytes``; others by their names."""
    return BY_NAME[name].said if name in BY_NAME else name


def extra(names: Iterable[str]) -> frozenset[str]:
    """Of some metrics, those that are measured only where a study asks for them."""
    return frozenset(names) & {cost.name for cost in EXTRA}

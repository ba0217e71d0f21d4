"""Names, units and directions of everything that is measured: the one place where signs flip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from autocompress.errors import InputError, MeasurementError, nearest


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity.

    Args:
        name: key in ``Measurement.values``; carries the unit.
        unit: for people.
        goal: whether more or less of it is better.
    """

    name: str
    unit: str
    goal: Literal["maximize", "minimize"]

    def loss(self, value: float) -> float:
        """The value with its sign turned so that less is better."""
        return -value if self.goal == "maximize" else value

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is strictly better than ``b``."""
        return self.loss(a) < self.loss(b)


ACCURACY = Metric("accuracy", "fraction of 1", "maximize")
LATENCY = Metric("latency_ms", "ms", "minimize")
MACS = Metric("macs", "multiply-adds", "minimize")
PARAMS = Metric("params", "weights", "minimize")
SIZE = Metric("size_bytes", "bytes", "minimize")
BOPS = Metric("bops", "bit operations", "minimize")
PEAK_MEMORY = Metric("peak_memory_bytes", "bytes", "minimize")
KL = Metric("kl", "nats", "minimize")

METRICS: Mapping[str, Metric] = MappingProxyType(
    {m.name: m for m in (ACCURACY, LATENCY, MACS, PARAMS, SIZE, BOPS, PEAK_MEMORY, KL)}
)


def metric(name: str) -> Metric:
    """Look a metric up; an unknown name is an error that names the nearest."""
    try:
        return METRICS[name]
    except KeyError:
        raise InputError(f"There is no metric {name!r}; {nearest(name, METRICS)}") from None


@dataclass(frozen=True)
class Measurement:
    """What one evaluation found: complete and finite, or it is not built.

    Args:
        values: metric name to value.
        spread: metric name to standard error (accuracy, kl) or interquartile range (latency).
        context: how it was measured: target, threads, split, images, versions. JSON-able.
    """

    values: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (*self.values.items(), *self.spread.items()):
            metric(name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise MeasurementError(f"`{name}` must be a finite number, got {value!r}.")
        for attribute in ("values", "spread", "context"):
            object.__setattr__(self, attribute, MappingProxyType(dict(getattr(self, attribute))))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Measurement, (dict(self.values), dict(self.spread), dict(self.context)))

    def __getitem__(self, name: str) -> float:
        try:
            return self.values[name]
        except KeyError:
            raise MeasurementError(
                f"`{name}` was not measured; {nearest(name, self.values)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def get(self, name: str, default: float | None = None) -> float | None:
        """The value, or ``default`` where it was not measured."""
        return self.values.get(name, default)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``from_dict`` inverts it."""
        return {
            "values": dict(self.values),
            "spread": dict(self.spread),
            "context": dict(self.context),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Inverse of ``as_dict``."""
        return cls(data["values"], data.get("spread", {}), data.get("context", {}))

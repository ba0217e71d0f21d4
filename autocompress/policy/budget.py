"""The hardware budget: limits that a policy's measurement must meet."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from autocompress.errors import InputError, nearest

#: what a budget may limit: short name to metric name, and the factor of each absolute unit
_METRICS = {
    "latency": "latency_ms",
    "macs": "macs",
    "params": "params",
    "size": "size_bytes",
    "memory": "peak_memory_bytes",
}
_SCALES = {
    "latency": {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3},
    "macs": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "params": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "size": {"": 1.0, "b": 1.0, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9},
    "memory": {"": 1.0, "b": 1.0, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9},
}
_LIMIT = re.compile(r"^\s*([A-Za-z_]+)\s*(<=?)\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)\s*$")


@dataclass(frozen=True, slots=True)
class Limit:
    """One upper bound.

    Args:
        metric: metric name (``latency_ms``, ``macs``, ``params``, ``size_bytes``,
            ``peak_memory_bytes``).
        value: the bound, above 0, in the metric's unit; a fraction when ``relative``.
        relative: whether ``value`` is a fraction of the uncompressed model's value.
    """

    metric: str
    value: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise InputError(
                f"A limit must be above 0 and finite, got {self.value!r} for {self.metric}."
            )

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read ``latency<=2ms``, ``latency<=0.5x``, ``macs<=50%``, ``size<=1MB``.

        Raises:
            InputError: with the nearest valid metric or the valid units.
        """
        found = _LIMIT.match(text)
        if not found:
            raise InputError(
                f"A budget reads like 'latency<=2ms', 'latency<=0.5x', 'macs<=40%' or "
                f"'size<=1MB', got {text!r}."
            )
        name, _, number, unit = found.groups()
        short = next((s for s, m in _METRICS.items() if name in (s, m)), None)
        if short is None:
            raise InputError(f"A budget cannot limit {name!r}; {nearest(name, _METRICS)}")
        try:
            value = float(number)
        except ValueError:
            raise InputError(f"{number!r} in the budget {text!r} is not a number.") from None
        if unit in ("x", "%"):
            return cls(_METRICS[short], value / (100.0 if unit == "%" else 1.0), relative=True)
        scale = _SCALES[short].get(unit.lower())
        if scale is None:
            raise InputError(
                f"{unit!r} is no unit of {short}; use one of "
                f"{', '.join(u for u in _SCALES[short] if u)}, or x or % for a share "
                "of the uncompressed model."
            )
        return cls(_METRICS[short], value * scale)

    def bound(self, baseline: Mapping[str, float]) -> float:
        """The bound in the metric's unit, given the uncompressed model's values."""
        if not self.relative:
            return self.value
        if self.metric not in baseline:
            raise InputError(
                f"The budget is relative to the uncompressed model's {self.metric}, "
                f"which was not measured; {nearest(self.metric, baseline)}"
            )
        return self.value * baseline[self.metric]

    def __str__(self) -> str:
        """As ``parse`` reads it: the same value, in few digits where they say it."""
        short = f"{self.value:g}"
        number = short if float(short) == self.value else repr(float(self.value))
        return f"{self.metric}<={number}{'x' if self.relative else ''}"


@dataclass(frozen=True, init=False)
class Budget:
    """Limits that must all be met; none at all is a valid budget.

    ``Budget(latency_ms=2.0)`` is absolute; ``Budget("latency<=0.5x", "size<=1MB")`` reads text.
    """

    limits: tuple[Limit, ...]

    def __init__(
        self,
        *limits: str | Limit,
        latency_ms: float | None = None,
        macs: float | None = None,
        params: float | None = None,
        size_bytes: float | None = None,
    ) -> None:
        read = [Limit.parse(item) if isinstance(item, str) else item for item in limits]
        named = {"latency_ms": latency_ms, "macs": macs, "params": params, "size_bytes": size_bytes}
        read += [Limit(name, value) for name, value in named.items() if value is not None]
        object.__setattr__(self, "limits", tuple(read))

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Budget:
        """Read several limits."""
        return cls(*texts)

    def __str__(self) -> str:
        return ", ".join(str(limit) for limit in self.limits) or "none"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the limited metrics, in order."""
        return tuple(dict.fromkeys(limit.metric for limit in self.limits))

    @staticmethod
    def with_limit(limits: Iterable[str], limit: str) -> tuple[str, ...]:
        """Limits as texts, with one in place of all on the same metric.

        Raises:
            InputError: one of them cannot be read.
        """
        metric = Limit.parse(limit).metric
        return (*(text for text in limits if Limit.parse(text).metric != metric), limit)

    def on(self, metrics: Container[str]) -> Budget:
        """The limits on some metrics alone: memory, for one, is not foretold."""
        return Budget(*(limit for limit in self.limits if limit.metric in metrics))

    def violations(
        self, values: Mapping[str, float], baseline: Mapping[str, float]
    ) -> dict[str, float]:
        """How far each limit is exceeded, as a fraction of the bound; at most 0 is feasible.

        Args:
            values: metric name to value of the candidate.
            baseline: the same for the uncompressed model.

        Raises:
            InputError: a limited metric is not among the values.
        """
        worst: dict[str, float] = {}
        for limit in self.limits:
            if limit.metric not in values:
                raise InputError(
                    f"The budget limits {limit.metric}, which was not measured; "
                    f"{nearest(limit.metric, values)}"
                )
            excess = values[limit.metric] / limit.bound(baseline) - 1.0
            worst[limit.metric] = max(excess, worst.get(limit.metric, excess))
        return worst

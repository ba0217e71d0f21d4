"""The hardware budget: limits that a policy's measurement must meet."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from autocompress.errors import InputError, nearest
from autocompress.policy.costs import BY_NAME, BY_WORD, CostMetric

_LIMIT = re.compile(
    r"^\s*([A-Za-z_]\w*)\s*([<>]=?)\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z%/]*)\s*$"
)

_TOLD = ("ms", "mJ", "GB", "MB", "kB", "G", "M", "k")
"""Units that limits are told in; of one size, the first that a cost knows."""

_FEWEST_BYTES = 1000
"""Nobody means less of a file or of memory."""
_NEXT_TO_NOTHING = 1e-9


@dataclass(frozen=True, slots=True)
class Limit:
    """One upper bound.

    Args:
        metric: name of a cost; see ``policy.costs``.
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
        """Read ``latency<=2ms``, ``latency<=0.5x``, ``size<=1MB``, ``throughput>=200/s``.

        Raises:
            InputError: with the nearest valid metric or the valid units.
        """
        found = _LIMIT.match(text)
        if not found:
            raise InputError(
                f"A budget reads like 'latency<=2ms', 'latency<=0.5x', 'macs<=40%', 'size<=1MB' or "
                f"'throughput>=200/s', got {text!r}."
            )
        name, sign, number, unit = found.groups()
        cost = BY_WORD.get(name) or BY_NAME.get(name)
        if cost is None or not cost.word:
            raise InputError(f"A budget cannot limit {name!r}; {nearest(name, BY_WORD)}")
        wanted = ">=" if cost.inverse and name == cost.word else "<="
        if sign[0] != wanted[0]:
            raise InputError(
                f"A budget limits {name} by {wanted}, got {text!r}: "
                f"{'more' if wanted == '>=' else 'less'} of it is better."
            )
        try:
            value = float(number)
        except ValueError:
            raise InputError(f"{number!r} in the budget {text!r} is not a number.") from None
        if not unit and name == cost.word and "mb" in cost.units and value < _FEWEST_BYTES:
            raise InputError(
                f"{text!r} would be {number} bytes. Give a unit: '{name}{sign}{number}MB', or "
                f"'{name}{sign}{number}%' for a share of the uncompressed model."
            )
        relative = unit in ("x", "%")
        units = {"": 1.0, "ms": 1.0} if cost.inverse and wanted == "<=" else cost.units
        scale = {"x": 1.0, "%": 0.01}.get(unit) or units.get(unit.lower())
        if scale is None:
            known = ", ".join(u for u in units if u)
            use = f"use one of {known}" if known else "give a number without one"
            raise InputError(
                f"{unit!r} is no unit of {name}; {use}, or x or % for a share of the uncompressed "
                "model."
            )
        if wanted == "<=" or not value:
            return cls(cost.name, value * scale, relative)
        # `n` a second are 1000 / n milliseconds each
        return cls(cost.name, 1 / (value * scale) if relative else scale / value, relative)

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
        cost = BY_NAME.get(self.metric)
        texts = () if cost is None or not cost.word else self._as_asked(cost)
        plain = f"{self.metric}<={_digits(self.value)}{'x' if self.relative else ''}"
        return next((text for text in texts if Limit.parse(text) == self), plain)

    def _as_asked(self, cost: CostMetric) -> Iterator[str]:
        """As people write it, the nicest first; not all of these are the same value."""
        if cost.inverse:
            unit = "x" if self.relative else cost.inverse
            yield f"{cost.word}>={(1.0 if self.relative else 1e3) / self.value:g}{unit}"
            return
        if self.relative:
            yield f"{cost.word}<={_digits(self.value)}x"
            return
        named = {told: cost.units[told.lower()] for told in _TOLD if told.lower() in cost.units}
        if cost.unit in named:
            named = {cost.unit: named[cost.unit]}
        for told, factor in sorted(named.items(), key=lambda one: -one[1]):
            if self.value >= factor or len(named) == 1:
                yield f"{cost.word}<={_digits(self.value / factor)}{told}"


def _digits(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


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
            # a share of nothing (a peak memory that does not grow) is kept by nothing alone
            excess = values[limit.metric] / (limit.bound(baseline) or _NEXT_TO_NOTHING) - 1.0
            worst[limit.metric] = max(excess, worst.get(limit.metric, excess))
        return worst

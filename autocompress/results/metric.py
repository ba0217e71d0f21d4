"""Names, units and directions of everything that is measured: the one place where signs flip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from autocompress.errors import InputError, MeasurementError, nearest
from autocompress.policy.claims import Claim, TimingClaim
from autocompress.policy.costs import COSTS
from autocompress.policy.section import read_as

Goal = Literal["maximize", "minimize"]
GOALS = ("maximize", "minimize")
FRACTION = "fraction of 1"
"""The unit of what people read in percent; differences of it are told in points."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much worse than the uncompressed model something may be.

    Args:
        amount: in the metric's unit, or a share of the uncompressed model's value.
        relative: whether it is such a share.
    """

    amount: float
    relative: bool = False

    @classmethod
    def parse(cls, value: str | float | Allowance) -> Allowance:
        """Read ``0.3`` (in the metric's unit) or ``"2%"`` (of the uncompressed model's value).

        Raises:
            InputError: neither, or not above 0.
        """
        if isinstance(value, Allowance):
            return value
        text = str(value).strip()
        relative = text.endswith("%")
        try:
            amount = float(text.removesuffix("%")) / (100.0 if relative else 1.0)
        except ValueError:
            amount = math.nan
        if not 0 < amount < math.inf:
            raise InputError(
                f"A loss of quality reads like 0.3 (in the metric's unit) or '2%' (of the "
                f"uncompressed model's value) and is above 0, got {value!r}."
            )
        return cls(amount, relative)

    def of(self, baseline: float) -> float:
        """The amount in the metric's unit, given the uncompressed model's value."""
        return self.amount * abs(baseline) if self.relative else self.amount

    def __str__(self) -> str:
        return f"{100 * self.amount:g}%" if self.relative else f"{self.amount:g}"


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity.

    Args:
        name: key in ``Measurement.values``.
        unit: for people; ``fraction of 1`` is shown in percent, and its differences in points.
        goal: whether more or less of it is better.
        margin: of a quality, such as ``"25%"`` or ``3.0``: a model that is worse than the
            uncompressed one by so much is of no use to anybody and adds nothing to a hypervolume.
            ``None`` is ten points of a fraction, a tenth of the uncompressed model's value where
            more is better, and once that value where less is (twice the error).
    """

    name: str
    unit: str
    goal: Goal
    margin: str | float | None = None

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise InputError(
                f"The metric {self.name!r} needs the goal 'maximize' or 'minimize', got "
                f"{self.goal!r}."
            )
        if self.margin is not None:
            Allowance.parse(self.margin)

    def loss(self, value: float) -> float:
        """The value with its sign turned so that less is better."""
        return -value if self.goal == "maximize" else value

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is strictly better than ``b``."""
        return self.loss(a) < self.loss(b)

    def lost(self, value: float, baseline: float) -> float:
        """By how much a value is worse than the baseline's, in the metric's unit."""
        return self.loss(value) - self.loss(baseline)

    def useless(self, baseline: float, margins: float = 1.0) -> float:
        """The value that is worse than the baseline's by the margin, or several of them."""
        away = margins * self._margin(baseline)
        return baseline - away if self.goal == "maximize" else baseline + away

    def _margin(self, baseline: float) -> float:
        if self.margin is not None:
            return Allowance.parse(self.margin).of(baseline)
        if self.fraction:
            return 0.10
        # a baseline of 0 has no share: one unit stands for it
        return abs(baseline) * (0.1 if self.goal == "maximize" else 1.0) or 1.0

    @property
    def fraction(self) -> bool:
        """Whether people read it in percent."""
        return self.unit == FRACTION

    @property
    def title(self) -> str:
        """Name and unit, for columns and axes; fractions are shown in percent."""
        unit = "%" if self.fraction else self.unit
        return f"{self.name}, {unit}" if unit else self.name

    def shown(self, value: float) -> float:
        """The number that people read: percent of a fraction, else the value."""
        return 100 * value if self.fraction else value

    def text(self, value: float | None) -> str:
        """A value with its unit."""
        if value is None:
            return "-"
        return f"{value:.2%}" if self.fraction else f"{value:.4g} {self.unit}".strip()

    def plain(self, value: float | None, error: float | None = None) -> str:
        """A value without its unit, for a column; with its standard error where that is known."""
        if value is None:
            return "-"
        form = "{:.2f}" if self.fraction else "{:.4g}"
        text = form.format(self.shown(value))
        if error is None:
            return text
        return f"{text} ± {('{:.2f}' if self.fraction else '{:.2g}').format(self.shown(error))}"

    def gap(self, shown: float, error: float | None = None, *, signed: bool = True) -> str:
        """A difference of what ``shown`` gives, in points or in the metric's unit."""
        form = f"{{:{'+' if signed else ''}{'.2f' if self.fraction else '.4g'}}}"
        text = form.format(shown)
        if error is not None:
            text += f" ± {error:.2f}" if self.fraction else f" ± {error:.2g}"
        return f"{text} {'points' if self.fraction else self.unit}".strip()

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``Metric(**d)`` inverts it."""
        found: dict[str, Any] = {"name": self.name, "unit": self.unit, "goal": self.goal}
        return found if self.margin is None else {**found, "margin": self.margin}


WORST_CLIENT = "worst_client_"
"""Begins the name of the quality of the client where it is worst, where data lie with clients."""
ACCURACY = Metric("accuracy", FRACTION, "maximize")
KL = Metric("kl", "nats", "minimize")

METRICS: Mapping[str, Metric] = MappingProxyType(
    {m.name: m for m in (ACCURACY, *(Metric(c.name, c.unit, "minimize") for c in COSTS), KL)}
)
"""Metrics that every study knows; those of a task stand in its measurements."""

LATENCY, MACS, PARAMS, SIZE = (
    METRICS[name] for name in ("latency_ms", "macs", "params", "size_bytes")
)

QUALITY = "quality"
"""Stands for the first metric of the task, whatever its name."""


def metric(name: str, task: Iterable[Metric] = ()) -> Metric:
    """Look a metric up; an unknown name is an error that names the nearest.

    Args:
        name: of a metric.
        task: metrics of the task; they come first.
    """
    known = {**METRICS, **{m.name: m for m in task}}
    try:
        return known[name]
    except KeyError:
        raise InputError(f"There is no metric {name!r}; {nearest(name, known)}") from None


def objectives(names: Iterable[str], task: Sequence[Metric]) -> tuple[Metric, ...]:
    """What a search compares policies by.

    Args:
        names: of metrics; ``quality`` is the task's first. So is ``accuracy`` where the task has
            no such metric: studies of earlier versions called every quality that.
        task: metrics of the task.
    """
    named = {m.name for m in task}
    words = {QUALITY} | ({ACCURACY.name} - named)
    return tuple(task[0] if name in words else metric(name, task) for name in names)


@dataclass(frozen=True)
class Measurement:
    """What one evaluation found: complete and finite, or it is not built.

    Args:
        values: metric name to value. The quality may be missing where it could not be told on a
            split; ``context["problems"]`` says why.
        spread: metric name to standard error (quality, kl) or interquartile range (latency).
        context: how it was measured: target, threads, split, images, versions. JSON-able.
        metrics: of the task, the quality first; records that do not say are of a classification.
    """

    values: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = (ACCURACY,)

    def __post_init__(self) -> None:
        for name, value in (*self.values.items(), *self.spread.items()):
            metric(name, self.metrics)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise MeasurementError(f"`{name}` must be a finite number, got {value!r}.")
        for attribute in ("values", "spread", "context"):
            object.__setattr__(self, attribute, MappingProxyType(dict(getattr(self, attribute))))

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (dict(self.values), dict(self.spread), dict(self.context), self.metrics)
        return (Measurement, parts)

    def __getitem__(self, name: str) -> float:
        try:
            return self.values[name]
        except KeyError:
            raise MeasurementError(
                f"`{name}` was not measured; {nearest(name, self.values)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self.values

    @property
    def quality(self) -> Metric:
        """What the model is judged by."""
        return self.metrics[0]

    @property
    def score(self) -> float:
        """Value of the quality.

        Raises:
            MeasurementError: it could not be told on this split.
        """
        return self[self.quality.name]

    @property
    def score_error(self) -> float:
        """Standard error of the quality; 0 where it is not known."""
        return self.spread.get(self.quality.name, 0.0)

    @cached_property
    def timing(self) -> TimingClaim:
        """How the latency was timed, as far as the context says it."""
        return read_as(TimingClaim, self.context.get("timing") or {}, "the timing")

    def get(self, name: str, default: float | None = None) -> float | None:
        """The value, or ``default`` where it was not measured."""
        return self.values.get(name, default)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``from_dict`` inverts it."""
        found = {
            "values": dict(self.values),
            "spread": dict(self.spread),
            "context": dict(self.context),
        }
        # records of a classification look as they always did
        own = (
            {} if self.metrics == (ACCURACY,) else {"metrics": [m.as_dict() for m in self.metrics]}
        )
        return {**found, **own}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Inverse of ``as_dict``.

        Raises:
            InputError: it does not have the form of a measurement.
        """
        return cls.of(read_as(Claim, data, "the measurement"))

    @classmethod
    def of(cls, claim: Claim) -> Measurement:
        """What a recipe claims."""
        metrics = tuple(Metric(m.name, m.unit, m.goal, m.margin) for m in claim.metrics or ())
        return cls(claim.values, claim.spread, claim.context, metrics or (ACCURACY,))

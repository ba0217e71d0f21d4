"""Metrics of a task: functions of a whole split or of each sample, or accumulators."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import InputError
from autocompress.results.metric import FRACTION, METRICS, Goal, Metric
from autocompress.task.batches import join_targets
from autocompress.task.nested import batch_size, concat, map_tensors, take

_GOALS: dict[str, Goal] = {"max": "maximize", "min": "minimize"}
_GROUPS = 10
"""Of samples, whose values tell how much a metric varies that cannot be computed per sample."""
_FEWEST_GROUPS = 3
_TAKEN = set(METRICS) - {"accuracy"}
"""Names that measurements use for something else."""


@dataclass(frozen=True)
class Score:
    """A metric on a split.

    Args:
        value: of the metric.
        stderr: its standard error; ``None`` where it cannot be told.
        each: ``(N,)`` the value of each sample, booleans where samples are right or wrong;
            ``None`` where the metric is of the whole split only.
    """

    value: float
    stderr: float | None = None
    each: NDArray[Any] | None = None


class Meter(Protocol):
    """Takes a split batch by batch."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""

    def result(self) -> Score:
        """The metric of all batches.

        Raises:
            InputError: the metric is no finite number.
        """


@dataclass(frozen=True)
class TaskMetric:
    """A metric of outputs and targets.

    Args:
        name: under which it is measured, shown and stored.
        unit: for people: ``dB``, ``px``, or empty; ``fraction of 1`` is shown in percent.
        goal: ``maximize`` or ``minimize`` (``max``, ``min``).
        compute: a function from the outputs and targets of a whole split to a number, or to one
            number per sample, whose mean is the metric. Or an accumulator, a class of them or a
            function that makes one: ``update(outputs, targets)`` for every batch, then
            ``compute()``; metrics of torchmetrics are such accumulators.
        per_sample: the function gives one number per sample, so that it is called batch by batch
            and no outputs are kept. Differences are then told on the same samples.
        margin: see ``Metric.margin``.
        resamples: bootstrap replications behind the standard error of a function of a whole split;
            0 tells it from ten groups of samples, for functions that take long.
    """

    name: str
    unit: str
    goal: str
    compute: Any
    per_sample: bool = False
    margin: str | float | None = None
    resamples: int = 200

    def __post_init__(self) -> None:
        if self.name in _TAKEN or not self.name:
            raise InputError(
                f"A metric cannot be named {self.name!r}: measurements call something else that. "
                "Choose another name."
            )
        if not callable(self.compute) and not _accumulates(self.compute):
            raise InputError(
                f"`compute` of the metric {self.name!r} must be a function of outputs and targets "
                "or an object with `update` and `compute`, got "
                f"{type(self.compute).__name__}."
            )
        object.__setattr__(self, "goal", _GOALS.get(self.goal, self.goal))
        _ = self.metric  # checks goal and margin

    @property
    def metric(self) -> Metric:
        """Name, unit and direction."""
        return Metric(self.name, self.unit, self.goal, self.margin)  # type: ignore[arg-type]  # checked there

    def meter(self) -> Meter:
        """A fresh one."""
        if _accumulates(self.compute) or _makes(self.compute):
            return _Accumulated(self.name, self.compute)
        if self.per_sample:
            return _Averaged(self.name, self.compute)
        return _Collected(self.name, self.compute, self.resamples)


class Directed(Protocol):
    """An accumulator that says which way is better, as the metrics of torchmetrics do."""

    higher_is_better: bool | None

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take one batch of outputs and targets."""

    def compute(self) -> Any:
        """The metric of all batches."""


def as_metric(given: TaskMetric | Directed) -> TaskMetric:
    """A metric of a task; of one of torchmetrics, under its own name and with its own goal.

    Raises:
        InputError: no metric, or one that does not say whether more is better.
    """
    if isinstance(given, TaskMetric):
        return given
    kind = type(given).__name__
    if not _accumulates(given):
        raise InputError(
            "A metric is an `autocompress.TaskMetric(name, unit, goal, compute)` or a metric of "
            f"torchmetrics, got {kind}."
        )
    better = getattr(given, "higher_is_better", None)
    if better is None:
        raise InputError(
            f"{kind} does not say whether more of it is better. Say it: "
            f'`TaskMetric("{_snake(kind)}", "", "max", metric)`, or "min".'
        )
    bounds = getattr(given, "plot_lower_bound", None), getattr(given, "plot_upper_bound", None)
    unit = FRACTION if bounds == (0.0, 1.0) else ""
    return TaskMetric(_snake(kind), unit, "maximize" if better else "minimize", given)


def _snake(name: str) -> str:
    """``MeanSquaredError`` as ``mean_squared_error``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _accumulates(value: Any) -> bool:
    return callable(getattr(value, "update", None)) and callable(getattr(value, "compute", None))


def _makes(value: Any) -> bool:
    """Whether a function is called without arguments, to make an accumulator."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # built in, without a signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    variable = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    needed = any(p.kind in positional and p.default is p.empty for p in parameters)
    return not variable and not needed


def _fresh(made_from: Any) -> Any:
    if isinstance(made_from, type) or not _accumulates(made_from):
        return made_from()
    own = copy.deepcopy(made_from)  # an accumulator at hand may have seen something
    if callable(getattr(own, "reset", None)):
        own.reset()
    return own


class _Accumulated:
    """An accumulator over all samples, and one over each tenth of them for the spread."""

    def __init__(self, name: str, made_from: Any) -> None:
        self.name = name
        self.whole = _fresh(made_from)
        self.groups = {place: _fresh(made_from) for place in range(_GROUPS)}
        self.seen: set[int] = set()

    def update(self, outputs: Any, targets: Any) -> None:
        self.whole.update(outputs, targets)
        count = batch_size(targets)
        size = math.ceil(count / _GROUPS)
        for place, start in enumerate(range(0, count, size)):
            part = slice(start, start + size)
            own = (_samples(outputs, part, count), _samples(targets, part, count))
            self.seen.add(place)
            try:
                if place in self.groups:
                    self.groups[place].update(*own)
            except Exception:
                # undefined on so few samples: they are ours, not the metric's; the whole took them
                del self.groups[place]

    def result(self) -> Score:
        value = number(self.name, self.whole.compute())
        each = [group for place, group in self.groups.items() if place in self.seen]
        return Score(value, _spread([partial(self._value, group) for group in each]))

    def _value(self, group: Any) -> float:
        return number(self.name, group.compute())


class _Averaged:
    """One number per sample."""

    def __init__(self, name: str, compute: Callable[[Any, Any], Any]) -> None:
        self.name, self.compute = name, compute
        self.each: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        count = batch_size(targets)
        found = torch.as_tensor(self.compute(outputs, targets)).detach().cpu()
        if found.dim() == 0 or len(found) != count:
            raise InputError(
                f"The metric {self.name!r} must give one number for each of {count} samples, got "
                f"the shape {tuple(found.shape)}. Leave `per_sample` out where it is a number of "
                "the whole split."
            )
        self.each.append(found)

    def result(self) -> Score:
        return averaged(self.name, torch.cat(self.each))


class _Collected:
    """All outputs and targets, for a function of the whole split."""

    def __init__(self, name: str, compute: Callable[[Any, Any], Any], resamples: int) -> None:
        self.name, self.compute, self.resamples = name, compute, resamples
        self.outputs: list[Any] = []
        self.targets: list[Any] = []

    def update(self, outputs: Any, targets: Any) -> None:
        self.outputs.append(outputs)
        self.targets.append(targets)

    def result(self) -> Score:
        outputs, targets = concat(self.outputs), join_targets(self.targets)
        count = batch_size(targets)
        found = self.compute(outputs, targets)
        if isinstance(found, Tensor | np.ndarray) and found.ndim and len(found) == count > 1:
            return averaged(self.name, torch.as_tensor(found).detach().cpu())
        value = number(self.name, found)

        def again(index: Tensor | slice) -> Callable[[], float]:
            parts = (_samples(outputs, index, count), _samples(targets, index, count))
            return lambda: number(self.name, self.compute(*parts))

        if not self.resamples:
            size = math.ceil(count / _GROUPS)
            groups = [slice(start, start + size) for start in range(0, count, size)]
            return Score(value, _spread([again(group) for group in groups]))
        generator = torch.Generator().manual_seed(0)
        drawn: list[float] = []
        for _ in range(self.resamples):
            try:
                drawn.append(again(torch.randint(count, (count,), generator=generator))())
            except Exception:
                continue  # undefined on this draw: no class of it may be there twice, or at all
        return Score(value, float(np.std(drawn)) if len(drawn) > self.resamples // 2 else None)


def averaged(name: str, each: Tensor) -> Score:
    """The mean of one number per sample (or several, as of positions), and its standard error."""
    count = len(each)
    if each.dtype is torch.bool and each.dim() == 1:
        value = float(each.float().mean())
        return Score(value, (value * (1 - value) / count) ** 0.5, each.numpy())
    flat = each.reshape(count, -1).float().mean(1)
    value = number(name, flat.mean())
    return Score(value, float(flat.std(unbiased=False)) / count**0.5, flat.double().numpy())


def number(name: str, value: Any) -> float:
    """A metric's value as a finite number.

    Raises:
        InputError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"The metric {name!r} must return a finite number, got {value!r}.")
    return found


def _spread(values: list[Callable[[], float]]) -> float | None:
    """Standard error of a metric of all samples, from its values on equal parts of them."""
    found = []
    for value in values:
        try:
            found.append(value())
        except Exception:
            continue  # undefined on so few samples; the whole has its value
    if len(found) < _FEWEST_GROUPS:
        return None
    return float(np.std(found, ddof=1)) / len(found) ** 0.5


def _samples(value: Any, index: Tensor | slice, count: int) -> Any:
    """Some samples of a structure; tensors that have no sample axis are left alone."""
    if isinstance(value, Tensor):
        return take(value, index) if value.dim() and len(value) == count else value
    return map_tensors(lambda part: _samples(part, index, count), value)

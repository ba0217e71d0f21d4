"""Metrics in their three forms agree with each other and with numpy; one that fails fails alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.task.metrics import Score, TaskMetric
from autocompress.task.task import Task


class Mean:
    """An accumulator of squared errors, as torchmetrics writes them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += float((outputs - targets).square().sum())
        self.count += outputs.numel()

    def compute(self) -> Tensor:
        return torch.tensor(self.total / self.count)


def each(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1)


def seen_before() -> Mean:
    made = Mean()
    made.update(torch.ones(3, 2), torch.zeros(3, 2))
    return made


FORMS: dict[str, dict[str, Any]] = {
    "whole": {"compute": lambda o, t: each(o, t).mean()},
    "each": {"compute": each},
    "per sample": {"compute": each, "per_sample": True},
    "class": {"compute": Mean},
    "factory": {"compute": lambda: Mean()},
    "at hand": {"compute": seen_before()},
}


def scored(metric: TaskMetric, count: int = 400, batch: int = 50) -> Score:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(2, count, 2, generator=generator)
    meter = metric.meter()
    for start in range(0, count, batch):
        meter.update(outputs[start : start + batch], targets[start : start + batch])
    return meter.result()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_value_and_about_the_same_error(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(2, 400, 2, generator=generator)
    squares = each(outputs, targets).numpy()
    found = scored(TaskMetric("mse", "", "min", **FORMS[form]))
    assert found.value == pytest.approx(squares.mean(), rel=1e-5)
    assert found.stderr is not None
    # ten groups know a standard deviation to about a quarter
    loose = 0.6 if form in ("class", "factory", "at hand") else 0.2
    assert found.stderr == pytest.approx(squares.std() / 20, rel=loose)
    assert (found.each is not None) == (form in ("each", "per sample"))


def test_an_accumulator_at_hand_stays_as_it_was() -> None:
    given = seen_before()
    scored(TaskMetric("mse", "", "min", given))
    assert given.count == 6


def test_goals_have_short_names_and_wrong_ones_are_refused() -> None:
    assert TaskMetric("a", "", "max", Mean).metric.goal == "maximize"
    with pytest.raises(InputError, match="goal 'maximize' or 'minimize', got 'more'"):
        TaskMetric("a", "", "more", Mean)
    with pytest.raises(InputError, match="cannot be named 'latency_ms'"):
        TaskMetric("latency_ms", "", "min", Mean)
    with pytest.raises(InputError, match="must be a function"):
        TaskMetric("a", "", "min", 3)
    with pytest.raises(InputError, match="names of their own"):
        Task([TaskMetric("a", "", "min", Mean), TaskMetric("a", "", "min", Mean)])
    with pytest.raises(InputError, match="at least one metric"):
        Task()


@pytest.mark.parametrize("bad", [float("nan"), "text", None, torch.zeros(2)])
def test_a_metric_is_a_finite_number(bad: object) -> None:
    with pytest.raises(InputError, match="'a' must return a finite number"):
        scored(TaskMetric("a", "", "min", lambda o, t: bad))


def test_one_number_per_sample_is_one_per_sample() -> None:
    with pytest.raises(InputError, match="for each of 50 samples"):
        scored(TaskMetric("a", "", "min", lambda o, t: (o - t).mean(), per_sample=True))


def test_a_metric_that_fails_fails_alone() -> None:
    def fails(outputs: Tensor, targets: Tensor) -> float:
        raise ZeroDivisionError("no positives")

    own = Task([TaskMetric("auc", "", "max", fails), TaskMetric("mse", "", "min", Mean)])
    judge = own.judge()
    judge.update(torch.ones(4, 2), torch.zeros(4, 2))
    found = judge.result()
    assert list(found.scores) == ["mse"]
    assert found.scores["mse"].value == 1.0
    assert found.problems == (
        "The metric 'auc' failed: a number is divided by zero (ZeroDivisionError: no positives)",
    )
    with pytest.raises(InputError, match="no positives"):
        judge.quality()


def test_correctness_alone_is_an_accuracy() -> None:
    own = Task(correct=lambda outputs, targets: outputs.round() == targets)
    judge = own.judge()
    judge.update(torch.tensor([0.1, 0.9, 2.2]), torch.tensor([0, 1, 1]))
    found = judge.result()
    assert own.quality.name == "accuracy"
    assert found.scores["accuracy"].value == pytest.approx(2 / 3)
    assert found.correct is not None
    np.testing.assert_array_equal(found.correct.each, [True, True, False])


def test_nested_outputs_and_targets_reach_a_metric_as_they_are() -> None:
    def joint(outputs: dict[str, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
        return (outputs["a"] - targets[0]).abs() + (outputs["b"] - targets[1]).abs()

    for form in ({"per_sample": True}, {}):
        meter = TaskMetric("gap", "", "min", joint, **form).meter()
        for _ in range(2):
            batch = {"a": torch.ones(5), "b": torch.zeros(5)}
            meter.update(batch, (torch.zeros(5), torch.zeros(5)))
        assert meter.result().value == 1.0


class Correlation:
    """Needs two samples at least, as correlations do."""

    def __init__(self) -> None:
        self.parts: list[float] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        if len(targets) < 2:
            raise ValueError("needs two samples")
        self.parts.append(float(torch.corrcoef(torch.stack([outputs, targets]))[0, 1]))

    def compute(self) -> float:
        return float(np.mean(self.parts))


def test_parts_that_are_too_small_for_a_metric_only_lack_in_its_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 255, generator=generator)
    meter = TaskMetric("r", "", "max", Correlation).meter()
    for batch in (slice(0, 250), slice(250, 255)):  # tenths of the last one are of one sample
        meter.update(x[batch], (x + noise)[batch])
    found = meter.result()
    own = [np.corrcoef(x[b], (x + noise)[b])[0, 1] for b in (slice(0, 250), slice(250, 255))]
    assert found.value == pytest.approx(float(np.mean(own)), abs=1e-6)
    # five tenths saw a part that was too small; five are left, each of 25 samples
    parts = [slice(start, start + 25) for start in range(125, 250, 25)]
    tenths = [np.corrcoef(x[part], (x + noise)[part])[0, 1] for part in parts]
    assert found.stderr == pytest.approx(float(np.std(tenths, ddof=1)) / 5**0.5, rel=1e-5)
    with pytest.raises(ValueError, match="two samples"):  # the whole is not guarded
        TaskMetric("r", "", "max", Correlation).meter().update(x[:1], x[:1])


@pytest.mark.parametrize("wrong", ["raises", "raises later", "a number", "too few"])
def test_correctness_that_cannot_be_told_leaves_the_metrics(wrong: str) -> None:
    calls: list[int] = []

    def correct(outputs: Tensor, targets: Tensor) -> Any:
        calls.append(len(targets))
        if wrong == "raises" or (wrong == "raises later" and len(calls) == 2):
            raise ZeroDivisionError("undefined here")
        return {"a number": 1.0, "too few": outputs[1:] > 0}.get(wrong, outputs > 0)

    error = TaskMetric("mae", "", "min", lambda o, t: (o - t).abs(), per_sample=True)
    judge = Task(error, correct=correct).judge()
    for _ in range(3):
        judge.update(torch.ones(4), torch.zeros(4))
    found = judge.result()
    assert found.scores["mae"].value == 1.0
    assert found.correct is None
    assert len(found.problems) == 1
    assert judge.quality().value == 1.0

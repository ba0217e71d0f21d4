"""Metrics of torchmetrics as they are, against scikit-learn."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score, mean_squared_error
from torch import Tensor

from autocompress.errors import InputError
from autocompress.task.task import Judge, Task

torchmetrics = pytest.importorskip("torchmetrics")


def judged(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Batch by batch, by a task that went to another process."""
    judge = Judge(pickle.loads(pickle.dumps(task)))
    for start in range(0, len(targets), 32):
        judge.update(outputs[start : start + 32], targets[start : start + 32])
    result = judge.result()
    assert not result.problems
    assert all(0 < (score.stderr or 0) < 0.2 for score in result.scores.values())
    return {name: score.value for name, score in result.scores.items()}


def test_metrics_of_classes_have_their_own_names_and_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(300, 4, generator=generator)
    targets = torch.randint(4, (300,), generator=generator)
    kinds = torchmetrics.classification
    accuracy, f1 = kinds.MulticlassAccuracy(4, average="micro"), kinds.MulticlassF1Score(4)
    accuracy.update(outputs, targets)  # what it has seen before does not count
    task = Task([f1, accuracy])
    assert [(m.name, m.unit, m.goal) for m in task.figures] == [
        ("multiclass_f1_score", "fraction of 1", "maximize"),
        ("multiclass_accuracy", "fraction of 1", "maximize"),
    ]
    found, best = judged(task, outputs, targets), outputs.argmax(1)
    assert found["multiclass_f1_score"] == pytest.approx(f1_score(targets, best, average="macro"))
    assert found["multiclass_accuracy"] == pytest.approx(float((best == targets).float().mean()))


def test_an_error_is_to_be_minimized() -> None:
    outputs, targets = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0)) / 2
    task = Task(torchmetrics.MeanSquaredError())
    assert (task.quality.name, task.quality.unit, task.quality.goal) == (
        "mean_squared_error",
        "",
        "minimize",
    )
    wanted = mean_squared_error(targets, outputs)
    assert judged(task, outputs, targets) == {"mean_squared_error": pytest.approx(wanted)}


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (torchmetrics.MeanMetric(), r"MeanMetric does not say whether.*TaskMetric\(\"mean_metric"),
        (0.5, "is an `autocompress.TaskMetric"),
        ([], "at least one metric"),
    ],
)
def test_what_says_too_little_is_refused(metric: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Task(metric)

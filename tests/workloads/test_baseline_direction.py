"""Rounds of a baseline are compared by the task's quality, whichever way it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_tasks
import torch
from torch import nn

from autocompress.policy.recovery import Schedule
from autocompress.recover.score import score
from autocompress.task.ready import regression
from autocompress.workloads import baseline


@pytest.mark.parametrize(("errors", "best"), [([0.5, 0.2, 0.3, 0.4], 1), ([0.1, 0.2, 0.3], 0)])
def test_the_least_error_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: list[float], best: int
) -> None:
    """The first error is that of the given weights."""
    left = iter(errors)
    monkeypatch.setattr(baseline, "score", lambda *args, **more: next(left))
    data = small_tasks.numbers()
    data.task = regression()
    given = nn.Linear(6, 1)
    rounds = baseline._Rounds(
        given, data, Schedule(epochs=1, batch_size=64), tmp_path / "k", 0, None
    )
    assert rounds.best(patience=2, min_delta=0.0, max_rounds=None) == best


def test_training_lowers_the_error_of_the_task(tmp_path: Path) -> None:
    data: Any = small_tasks.numbers()
    data.task = task = regression()
    torch.manual_seed(0)
    given = nn.Linear(6, 1)
    trained = baseline.train_baseline(
        given, data, Schedule(epochs=4, batch_size=64, lr=0.05), tmp_path, patience=4, max_rounds=2
    )
    assert score(trained, data.val, task) < score(given, data.val, task)

"""Models that mix the samples of a batch are told, at every entry; others are not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import InfeasibleBudget, UnsupportedModel
from autocompress.task.calling import call
from autocompress.task.mixing import told_by_others

X = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))


class Made(nn.Module):
    """A function behind a layer."""

    def __init__(self, function: Callable[[Tensor], Any], *parts: nn.Module) -> None:
        super().__init__()
        self.layer, self.function, self.parts = nn.Linear(6, 6), function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


def attention(first: bool) -> nn.Module:
    inner = nn.MultiheadAttention(6, 2, batch_first=first)
    return Made(lambda x: inner(x, x, x)[0], inner)


def recurrent(first: bool) -> nn.Module:
    inner = nn.GRU(6, 6, batch_first=first)
    return Made(lambda x: inner(x)[0], inner)


def normed(tracked: bool) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(5, track_running_stats=tracked), nn.Linear(6, 3))


MIXING: dict[str, Callable[[], nn.Module]] = {
    "statistics of the batch": partial(normed, False),
    "softmax over samples": lambda: Made(lambda x: x.softmax(0)),
    "mean of samples": lambda: Made(lambda x: x - x.mean(0)),
    "rank among samples": lambda: Made(lambda x: x.argsort(0).float()),
    "attention over samples": partial(attention, False),
    "recurrence over samples": lambda: Made(lambda x: x.flip(0).cumsum(0)),
    "sequences first": partial(recurrent, False),
    "one of several outputs": lambda: Made(lambda x: {"a": x, "b": [x / x.norm()]}),
}
APART: dict[str, Callable[[], nn.Module]] = {
    "statistics of training": partial(normed, True),
    "softmax over features": lambda: Made(lambda x: x.softmax(-1)),
    "layer norm": lambda: nn.LayerNorm(6),
    "instance norm": lambda: nn.InstanceNorm1d(5),
    "attention over positions": partial(attention, True),
    "recurrence over positions": partial(recurrent, True),
    "noise": lambda: Made(lambda x: x + torch.randn_like(x)),
    "of no sample": lambda: Made(lambda x: (x, x.mean((0, 1)))),
    "cut to the longest": lambda: Made(lambda x: x[:, : 1 + int((x[..., 0] > 0).sum(1).max())]),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_other_samples_change_is_told(name: str) -> None:
    torch.manual_seed(0)
    (found,) = told_by_others(partial(call, MIXING[name]().eval()), X)
    assert "depends on the other samples" in found
    assert "batch_first=True" in found


@pytest.mark.parametrize("name", APART)
def test_what_each_sample_gets_by_itself_is_not(name: str) -> None:
    torch.manual_seed(0)
    assert told_by_others(partial(call, APART[name]().eval()), X) == ()
    assert told_by_others(partial(call, MIXING["mean of samples"]().eval()), X[:1]) == ()


def mixing() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3), nn.Softmax(0)).eval()


ENTRIES: dict[str, Callable[[nn.Module, Any, Path], Any]] = {
    "evaluate": lambda model, data, folder: ac.evaluate(model, data),
    "profile": lambda model, data, folder: ac.profile(model, data),
    "search": lambda model, data, folder: ac.search(
        model, data, budget="macs<=0.00001x", out=folder, quiet=True
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_tells_it(entry: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "autocompress")
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    data = {"train": (x, torch.arange(120) % 3)}
    try:
        found = ENTRIES[entry](mixing(), data, tmp_path / "run")
    except InfeasibleBudget:  # the search is told before its budget is looked at
        found = None
    assert caplog.text.count("depends on the other samples") == 1
    if entry == "profile":
        assert any("depends on the other samples" in note for note in found["notes"])


def test_a_model_that_takes_no_single_sample_is_refused_for_that_reason() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(UnsupportedModel, match="depends on the other samples"):
        ac.profile(model, {"train": (torch.randn(60, 6), torch.arange(60) % 3)})

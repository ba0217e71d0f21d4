"""Layers that values of the input choose: their channels stay, and no file stands for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import ExportError
from autocompress.model.groups import channel_groups

Choice = Callable[[Tensor], bool]


class Chosen(nn.Module):
    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.i, self.c, self.d, self.o = (
            nn.Linear(8, 16),
            nn.Linear(16, 12),
            nn.Linear(16, 12),
            nn.Linear(12, 3),
        )
        self.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        way = self.c if self.choice(x) else self.d
        answer: Tensor = self.o(way(self.i(x).relu()))
        return answer


class Checked(nn.Module):
    """Reads a value, and goes the same way in any case; one layer never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o, self.never = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.isnan().any()):
            raise ValueError("not a number")
        answer: Tensor = self.o(self.i(x).relu())
        return answer


CHOICES: dict[str, Choice] = {
    "sum": lambda x: float(x.sum()) > 0,
    "mean": lambda x: x.abs().mean().item() > 0.7,
    "any": lambda x: bool((x > 1.5).any()),
}


@pytest.mark.parametrize("name", CHOICES)
def test_channels_that_a_chosen_layer_may_read_stay(name: str) -> None:
    torch.manual_seed(0)
    groups, plan = channel_groups(Chosen(CHOICES[name]).eval(), torch.randn(4, 8))
    assert groups == ()
    assert plan.members == {}
    assert "choose whether c, d runs" in plan.skipped["i"]


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_file_that_goes_one_way_only_is_refused(name: str, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    model = Chosen(CHOICES[name]).eval()
    with pytest.raises(ExportError, match=r"branch on its input.*torch\.where"):
        ac.export(model, tmp_path / "m.onnx", example=torch.randn(2, 8))


def test_a_value_that_is_only_checked_chooses_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    groups, _ = channel_groups(Checked().eval(), torch.randn(4, 8))
    assert [group.name for group in groups] == ["i"]
    ac.export(Checked().eval(), tmp_path / "m.onnx", example=torch.randn(2, 8))

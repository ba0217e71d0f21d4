"""Whatever a model's forward raises on the data is told with what went in and what to do."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import UnsupportedModel

Y = torch.arange(60) % 3


class Around(nn.Module):
    """A layer, after and before something else."""

    def __init__(self, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.down(torch.relu(self.up(self.before(x)))))


def asserts(x: Tensor) -> Tensor:
    assert x.shape[1] == 8, "another width"
    return x


def keyed(x: Tensor) -> Tensor:
    return {"8": x}[str(x.shape[1])]


def attributed(x: Tensor) -> Tensor:
    return x.pixel_values  # type: ignore[attr-defined]  # what a forward of somebody's asks for


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1))


IMAGES = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
WIDE = torch.randn(60, 9)
CASES: dict[str, tuple[nn.Module, Any, str]] = {
    "another width": (
        Around(),
        (WIDE, Y),
        r"\(N, 9\) float32: sizes do not fit .*RuntimeError",
    ),
    "assertion": (Around(asserts), (WIDE, Y), "AssertionError: another width"),
    "key": (Around(keyed), (WIDE, Y), "KeyError: '9'"),
    "attribute": (Around(attributed), (WIDE, Y), "AttributeError: .*pixel_values"),
    "index": (
        Words(),
        (torch.full((60, 4), 7), Y),
        r"\(N, 4\) int64: an index lies .*IndexError",
    ),
    "bytes": (
        IMAGES,
        (torch.ones(60, 3, 6, 6, dtype=torch.uint8), Y),
        r"\(N, 3, 6, 6\) uint8: number types .*RuntimeError",
    ),
    "channels last": (IMAGES, (torch.randn(60, 6, 6, 3), Y), r"\(N, 6, 6, 3\) float32"),
    "integers": (
        Around(),
        (torch.ones(60, 8).long(), Y),
        r"int64: number types do not fit .*RuntimeError",
    ),
    "another name": (
        Around(),
        [{"x": torch.randn(9), "label": int(t)} for t in Y],
        r"x \(N, 9\) float32",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_forward_raises_is_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "autocompress")
    model, train, match = CASES[name]
    with pytest.raises(UnsupportedModel, match=f"(?s){match}.*input_fn") as raised:
        ac.profile(model.eval(), {"train": train, "val": train, "test": train})
    assert raised.value.__cause__ is not None
    assert "the model's forward failed" in caplog.text
    assert "Traceback" in caplog.text


def test_an_answer_without_a_tensor_is_told() -> None:
    model = Around(after=lambda x: x.detach().numpy()).eval()
    with pytest.raises(UnsupportedModel, match=r"gives ndarray.*\.numpy\(\)"):
        ac.profile(model, {"train": (torch.randn(60, 8), Y)})

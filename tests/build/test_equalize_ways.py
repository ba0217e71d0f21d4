"""Scales moved between layers where inputs decide the way, or one channel is clipped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.equalize import equalize
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Compressed, Precision


def _outlier(model: nn.Module, maker: str, reader: str) -> None:
    """Make one channel 300 times larger, and what reads it as much smaller."""
    with torch.no_grad():
        for parameter in model.get_submodule(maker).parameters(recurse=False):
            parameter[1] *= 300
        model.get_submodule(reader).get_parameter("weight")[:, 1] /= 300


def _compressed(model: nn.Module) -> Compressed:
    layers = {
        n: Precision(8, 8, reduced=True) for n, m in model.named_modules() if type(m) is nn.Linear
    }
    given = CompressionSettings(calibration_images=64)
    return Compressed(model.eval(), Policy(), given, precisions=layers)


class Ways(nn.Module):
    """What comes in decides which layer, or which function, reads the first one's activation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one, self.two, self.other = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.last, self.kind = nn.Linear(12, 5), kind

    def forward(self, x: Tensor) -> Tensor:
        x, usual = self.one(x), float(x[0, 0]) < {"never seen": 50.0}.get(self.kind, 0.8)
        if self.kind == "function":
            return self.last(F.relu(self.two(F.relu(x) if usual else torch.tanh(x))))
        return self.last(F.relu((self.two if usual else self.other)(F.relu(x))))


@pytest.mark.parametrize("kind", ["layer", "function", "never seen"])
def test_scales_stay_where_another_way_would_read_them(kind: str) -> None:
    """The first few inputs all go one way, of the others some; of `never seen` none does."""
    torch.manual_seed(0)
    model = Ways(kind).eval()
    _outlier(model, "one", "two")
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    inputs[:8, 0] = -1.0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compressed = _compressed(model)
    assert equalize(model, compressed, inputs) == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Asking(nn.Module):
    """It asks for values, as language models ask their mask, and goes the same way all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.isnan().any()):
            raise ValueError("no numbers")
        return self.last(F.relu(self.two(F.relu(self.one(x)))))


def test_asking_for_values_alone_keeps_no_scale_from_moving() -> None:
    torch.manual_seed(0)
    model = Asking().eval()
    _outlier(model, "one", "two")
    moved, inputs = copy.deepcopy(model), torch.randn(64, 8)
    assert equalize(moved, _compressed(model), inputs) == ("two",)
    with torch.no_grad():
        torch.testing.assert_close(moved(inputs), model(inputs), rtol=1e-4, atol=1e-4)


class Clipped(nn.Module):
    """One channel alone is clipped, above or below; a mask stands at the end of a float's range."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.mask, self.limits = nn.Parameter(torch.zeros(12)), (low, high)
        self.mask.data[3] = torch.finfo(torch.float32).min

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x) + self.mask
        x = torch.cat([F.hardtanh(x[:, :1], *self.limits), F.relu(x[:, 1:])], 1)
        return self.last(F.relu(self.two(x)))


@pytest.mark.parametrize("channel", range(12))
def test_a_clip_of_any_one_channel_is_seen_and_what_was_tried_leaves_no_trace(channel: int) -> None:
    torch.manual_seed(0)
    model = Clipped(0.0, 8.0).eval()
    turn = torch.arange(12).roll(channel)  # which random scale meets the clip
    with torch.no_grad():
        for parameter in (model.one.weight, model.one.bias):
            parameter.copy_(parameter[turn])
    _outlier(model, "one", "two")
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    moved = copy.deepcopy(model)
    equalize(moved, _compressed(model), inputs)
    assert torch.equal(moved.mask, model.mask)
    with torch.no_grad():
        torch.testing.assert_close(moved(inputs), model(inputs), rtol=1e-4, atol=1e-4)

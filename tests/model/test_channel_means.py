"""Means over channels: a pruned network takes them over all channels that were there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from masking import drawn
from torch import Tensor, nn

from autocompress.model.groups import channel_groups
from autocompress.model.slicing import remove


class ResponseNorm(nn.Module):
    """Global response normalization (Woo et al., 2023, ConvNeXt V2, algorithm 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.beta = nn.Parameter(torch.rand(channels, 1, 1) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(2, 3), keepdim=True)
        return x + self.gamma * (x * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta


def by_root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(torch.mean(x * x, dim=1, keepdim=True) + 1e-6)


def by_share(x: Tensor) -> Tensor:
    return x / (1 + torch.relu(x).mean(dim=1, keepdim=True))


def by_layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)


def with_means_of_sigmoids(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x).mean(1, keepdim=True)


class Meaned(nn.Module):
    """A norm between two convolutions, the first of which makes what is averaged."""

    def __init__(self, norm: Callable[[Tensor], Tensor], batch_norm: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 5, 1)
        self.batch_norm = nn.BatchNorm2d(12) if batch_norm else None
        self.norm, self.head = norm, nn.Linear(5, 4)
        if self.batch_norm is not None:
            nn.init.uniform_(self.batch_norm.weight, 0.5, 1.5)
            nn.init.uniform_(self.batch_norm.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x if self.batch_norm is None else self.batch_norm(x)
        return self.head(torch.relu(self.second(self.norm(F.gelu(x)))).mean((2, 3)))


def made(norm: Callable[[Tensor], Tensor], batch_norm: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Meaned(norm, batch_norm).double().eval(), torch.randn(3, 3, 6, 6, dtype=torch.double)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    "norm", [ResponseNorm(12).double(), by_root_mean_square, by_share], ids=["grn", "rms", "share"]
)
@torch.no_grad()
def test_a_mean_is_that_of_the_network_with_zeros(
    norm: Callable[[Tensor], Tensor], batch_norm: bool, tmp_path: Path
) -> None:
    import onnxruntime

    model, x = made(norm, batch_norm)
    groups, plan = channel_groups(model, x)
    assert [group.name for group in groups] == ["first", "second"]
    gone = drawn(plan, 0.5, 1)
    assert 0 < len(gone["first"]) < 12
    small, whole = copy.deepcopy(model), copy.deepcopy(model)
    remove(small, plan.removals(gone))
    assert small.get_submodule("first").weight.shape[0] == 12 - len(gone["first"])
    maker = whole.get_submodule("batch_norm" if batch_norm else "first")
    for weight in maker.parameters():
        weight[gone["first"]] = 0
    whole.get_submodule("second").weight[:, gone["first"]] = 0
    whole.get_submodule("head").weight[:, gone["second"]] = 0
    torch.testing.assert_close(small(x), whole(x), rtol=1e-10, atol=1e-10)

    small, path = small.float(), tmp_path / "model.onnx"
    torch.onnx.export(small, (x.float(),), path, input_names=["x"], dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x.float().numpy()})
    np.testing.assert_allclose(got, whole(x).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", [by_layer_norm, with_means_of_sigmoids])
def test_what_zeros_do_not_leave_zero_is_left_alone(norm: Callable[[Tensor], Tensor]) -> None:
    groups, plan = channel_groups(*made(norm, False))
    assert [group.name for group in groups] == ["second"]
    assert "answers differently from the masked one" in plan.skipped["first"]


class Repeated(nn.Module):
    """The same line averages channels of two widths, one after another."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, first, 1), nn.Conv2d(first, second, 1)
        self.head = nn.Conv2d(second, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            x = torch.relu(layer(x))
            x = x / (0.1 + x.mean(1, keepdim=True))
        return self.head(x).mean((2, 3))


def zeroed(model: nn.Module, gone: Mapping[str, Sequence[int]], readers: Mapping[str, str]) -> Any:
    """The whole network that makes and reads zeros there."""
    whole = copy.deepcopy(model)
    for name, channels in gone.items():
        for weight in whole.get_submodule(name).parameters():
            weight[channels] = 0
        whole.get_submodule(readers[name]).weight[:, channels] = 0
    return whole


@pytest.mark.parametrize("widths", [(12, 8), (16, 8), (12, 12)])
@pytest.mark.parametrize("gone", [{"a": [0, 1, 4, 5]}, {"b": [3]}, {"a": [2], "b": [0, 7]}])
@torch.no_grad()
def test_a_line_that_runs_again_is_corrected_for_each_run(
    widths: tuple[int, int], gone: dict[str, list[int]]
) -> None:
    """Also where some of the groups are cut only, and widths that are left coincide."""
    torch.manual_seed(0)
    model, x = Repeated(*widths).double().eval(), torch.randn(3, 3, 4, 4, dtype=torch.double)
    groups, plan = channel_groups(model, x)
    assert {group.name for group in groups} == {"a", "b"}
    small = copy.deepcopy(model)
    remove(small, plan.removals(gone))
    wanted = zeroed(model, gone, {"a": "b", "b": "head"})(x)
    torch.testing.assert_close(small(x), wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_cut_model_that_is_compiled_answers_the_same() -> None:
    torch.manual_seed(0)
    model, x = Repeated(12, 8).double().eval(), torch.randn(3, 3, 4, 4, dtype=torch.double)
    _, plan = channel_groups(model, x)
    gone = {"a": [0, 1, 4, 5]}
    remove(small := copy.deepcopy(model), plan.removals(gone))
    compiled = torch.compile(small, backend="eager")
    wanted = zeroed(model, gone, {"a": "b", "b": "head"})(x)
    torch.testing.assert_close(compiled(x), wanted, rtol=1e-10, atol=1e-10)

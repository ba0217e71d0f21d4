"""Pruned models whose forward says sizes: copied, pickled, exported, in batches of any size."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from field_networks import CASES
from torch import Tensor, nn

from autocompress.errors import UnsupportedModel
from autocompress.model.groups import channel_groups
from autocompress.model.places import parts_of
from autocompress.model.sized_calls import CorrectedForward
from autocompress.model.slicing import remove


def cut(name: str) -> tuple[nn.Module, Tensor]:
    make, example, _ = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    _, plan = channel_groups(model, example)
    gone = {group: [c for unit in units[:1] for c in unit] for group, units in plan.units.items()}
    remove(model, plan.removals(gone))
    return model, example


@pytest.mark.parametrize("name", ["vit, fused", "generator", "yolo c2f, split"])
def test_a_file_computes_what_the_module_computes(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model, example = cut(name)
    path = tmp_path / "model.onnx"
    axes = {"x": {0: "batch"}}
    torch.onnx.export(
        model, (example[:2],), path, input_names=["x"], dynamic_axes=axes, dynamo=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": example[:3].numpy()})
    np.testing.assert_allclose(got, model(example[:3]).detach().numpy(), rtol=1e-3, atol=1e-4)


class Flattened(nn.Module):
    """The module with the calls is the model itself, and says its sizes in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu().view(x.size(0), 8 * 36)).relu())


class GroupedQueries(nn.Module):
    """Keys and values are repeated for several queries each (Ainslie et al., 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.q, self.k = nn.RMSNorm(16), nn.Linear(16, 24), nn.Linear(16, 12)
        self.v, self.o = nn.Linear(16, 12), nn.Linear(24, 16)
        self.g, self.u, self.d = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.n(x)
        q = self.q(y).view(n, t, 4, 6).transpose(1, 2)
        k, v = (layer(y).view(n, t, 2, 6).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (
            z[:, :, None].expand(n, 2, 2, t, 6).reshape(n, 4, t, 6).transpose(1, 2) for z in (k, v)
        )
        a = torch.softmax(q @ k.permute(0, 2, 3, 1), -1) @ v.transpose(1, 2)
        x = x + self.o(a.transpose(1, 2).reshape(n, t, 24))
        return x + self.d(nn.functional.silu(self.g(self.n(x))) * self.u(self.n(x)))


class Projected(nn.Module):
    """Grouped queries between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.block, self.head = nn.Linear(8, 16), GroupedQueries(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.i(x)))


PROGRAMS = {
    **{name: CASES[name][:2] for name in ("generator", "vit, fused")},
    "literal view": (Flattened, torch.randn(8, 3, 8, 8)),
    "grouped queries": (Projected, torch.randn(8, 6, 8)),
}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_program_takes_any_batch_wherever_channels_went(name: str) -> None:
    """One group is cut, then all of them; the module itself is the oracle."""
    make, example = PROGRAMS[name]
    torch.manual_seed(0)
    model = make().eval()
    _, plan = channel_groups(model, example)
    gone = {group: [c for unit in units[:1] for c in unit] for group, units in plan.units.items()}
    axes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    for chosen in ({group: gone[group] for group in [*gone][-1:]}, gone):
        cut_one = copy.deepcopy(model)
        remove(cut_one, plan.removals(chosen))
        with torch.no_grad():
            run = torch.export.export(cut_one, (example[:2],), dynamic_shapes=axes).module()
            for count in (1, 2, 3):
                fresh = example[:count]
                torch.testing.assert_close(run(fresh), cut_one(fresh), rtol=1e-4, atol=1e-5)


def test_copies_and_pickles_are_corrected_by_themselves() -> None:
    model, example = cut("vit, fused")
    wanted = model(example)
    copied = copy.deepcopy(model)
    file = io.BytesIO(pickle.dumps(model))
    loaded = pickle.load(file)
    for other in (copied, loaded):
        forward = vars(other.attention)["forward"]
        assert isinstance(forward, CorrectedForward)
        assert forward.module is other.attention
        torch.testing.assert_close(other(example), wanted)


def test_modules_that_say_no_sizes_stay_as_they_are() -> None:
    for name in ("inner scale", "u-net", "volume"):
        model, _ = cut(name)
        assert not any("forward" in vars(module) for module in model.modules()), name


@pytest.mark.parametrize("name", ["chunk", "unsafe_chunk", "split", "tensor_split"])
@pytest.mark.parametrize("size", [1, 5, 6, 12])
@pytest.mark.parametrize("how", [1, 2, 3, 4, 7])
def test_parts_are_those_of_torch(name: str, size: int, how: int) -> None:
    wanted = [part.tolist() for part in getattr(torch, name)(torch.arange(size), how)]
    assert [list(part) for part in parts_of(name, size, how)] == wanted


@pytest.mark.parametrize(
    ("name", "how"), [("split", [2, 0, 4]), ("split_with_sizes", [1, 5]), ("tensor_split", [2, 9])]
)
def test_listed_parts_are_those_of_torch(name: str, how: list[int]) -> None:
    wanted = [part.tolist() for part in getattr(torch, name)(torch.arange(6), how)]
    assert [list(part) for part in parts_of(name, 6, how)] == wanted


class OverTime(nn.Module):
    """Sums up over time before heads are told apart; in training the order is another."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(8, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(x))
        if self.training:
            h = h[:, torch.randperm(h.shape[1])]  # of which the sum sees nothing
        total = torch.zeros(())
        for t in range(h.shape[1]):
            total = total + h[:, t]
        y = total.view(len(x), 4, -1)
        y = y / y.pow(2).sum(-1, keepdim=True).clamp_min(1e-6).sqrt()
        return self.head(y.flatten(1))


class EachStep(OverTime):
    """Tells heads apart in every step, in a function of its own, and takes parts of them."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(x))
        if self.training:
            h = h.reshape(len(x), -1, 64) if h.requires_grad else h[:, :]
        steps = [self.normed(h[:, t]) for t in range(h.shape[1])]
        return self.head(torch.stack(steps).sum(0))

    def normed(self, h: Tensor) -> Tensor:
        y = h.view(len(h), 4, 16)
        parts = [y[..., i : i + 8] for i in (0, 8)]
        size = sum(part.pow(2).sum(-1, keepdim=True) for part in parts)
        return (y / size.clamp_min(1e-6).sqrt()).flatten(1)  # type: ignore[union-attr]  # a tensor by now


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("length", [6, 9, 4, 1])
@pytest.mark.parametrize("kind", [OverTime, EachStep])
def test_calls_are_those_of_the_code_whatever_runs_before(
    kind: type[OverTime], length: int, training: bool
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    _, plan = channel_groups(model, torch.randn(2, 6, 8))
    removals = plan.removals({"up": [c for unit in plan.units["up"][:1] for c in unit]})
    small = copy.deepcopy(model)
    remove(small, removals)
    x = torch.randn(4, length, 8)
    with torch.no_grad():
        model.head.weight[:, removals["head", "in"]] = 0
        wanted, found = (m.train(training)(x) for m in (model, small))
    assert small.up.out_features < 64
    torch.testing.assert_close(found, wanted)


class Turns(nn.Module):
    """Two streams in turn through one call, as often as there are steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 12)
        self.c, self.d = nn.Linear(16, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        streams = (self.a(x).relu().sum(1), self.b(x).relu().sum(1))
        readers = (self.c, self.d)
        total = torch.zeros(())
        for t in range(x.shape[1]):
            y = streams[t % 2].view(len(x), 4, -1)
            y = y / y.pow(2).sum(-1, keepdim=True).clamp_min(1e-6).sqrt()
            total = total + readers[t % 2](y.flatten(1))
        return total


def test_a_call_that_cannot_be_told_is_refused() -> None:
    torch.manual_seed(0)
    model = Turns().eval()
    x = torch.randn(2, 2, 8)
    groups, plan = channel_groups(model, x)
    assert {g.name for g in groups} == {"a", "b"}
    remove(model, plan.removals({"a": [c for unit in plan.units["a"][:1] for c in unit]}))
    model(x)
    with pytest.raises(UnsupportedModel, match=r"'view' in Turns.forward runs more often"):
        model(torch.randn(2, 4, 8))


def test_another_size_is_tried_where_it_may_come() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 8)
    groups, plan = channel_groups(Turns().eval(), x, {"input": {1: "steps"}})
    assert not groups
    assert "does not run at another size: " in plan.skipped["a"]
    groups, _ = channel_groups(OverTime().eval(), x, {"input": {1: "steps"}})
    assert [g.name for g in groups] == ["up"]

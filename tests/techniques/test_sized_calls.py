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

from autocompress.model.groups import channel_groups
from autocompress.techniques.prune import remove
from autocompress.techniques.sized_calls import CorrectedForward, _parts


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
    assert [list(part) for part in _parts(name, size, how)] == wanted


@pytest.mark.parametrize(
    ("name", "how"), [("split", [2, 0, 4]), ("split_with_sizes", [1, 5]), ("tensor_split", [2, 9])]
)
def test_listed_parts_are_those_of_torch(name: str, how: list[int]) -> None:
    wanted = [part.tolist() for part in getattr(torch, name)(torch.arange(6), how)]
    assert [list(part) for part in _parts(name, 6, how)] == wanted

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
from autocompress.techniques.sized_calls import CorrectedForward


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

"""An ONNX file as the model: what is made of it is compared with it, output by output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import InputError
from autocompress.workloads.onnx_file import onnx_model


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.body(x))
        return self.first(x), self.second(x), self.second(x).argmax(1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return ac.export(Heads().eval(), tmp_path / "m.onnx", example=torch.randn(2, 6))


def test_all_outputs_are_the_files(file: Path) -> None:
    x = torch.randn(5, 6)
    for one, other in zip(onnx_model(str(file))(x), Heads()(x), strict=True):
        torch.testing.assert_close(one, other)


def test_an_output_that_differs_refuses_the_conversion(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converter is made to err in one head: the first output stays what it was."""
    import onnx2torch

    convert = onnx2torch.convert

    def errs(graph: onnx.ModelProto) -> nn.Module:
        module = convert(graph)
        (head,) = (m for m in module.modules() if getattr(m, "out_features", 0) == 2)
        head.bias.data += 1
        return module

    monkeypatch.setattr(onnx2torch, "convert", errs)
    with pytest.raises(InputError, match=r"computes something else \(output 2: .*off\)"):
        onnx_model(str(file))


@pytest.mark.parametrize("opset", [18, 20, None])
def test_what_the_exporter_of_torch_writes_can_be_read(tmp_path: Path, opset: int | None) -> None:
    """With a free batch its flattening is a reshape that takes a zero as a size."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    ).eval()
    path = tmp_path / "model.onnx"
    given = {} if opset is None else {"opset_version": opset}
    example = (torch.zeros(2, 1, 8, 8),)
    torch.onnx.export(model, example, path, dynamic_shapes=({0: "batch"},), dynamo=True, **given)
    inputs = torch.randn(3, 1, 8, 8)
    found = onnx_model(str(path))
    torch.testing.assert_close(found(inputs), model(inputs), rtol=1e-4, atol=1e-5)


def _odd(model: onnx.ModelProto, kind: str, folder: Path) -> Path:
    """A file that a stranger may hand over."""
    path = folder / "odd.onnx"
    if kind == "external data cut short":
        onnx.save(model, path, save_as_external_data=True, location="d.bin", size_threshold=0)
        (folder / "d.bin").write_bytes((folder / "d.bin").read_bytes()[:-8])
        return path
    if kind == "no set of operators":
        del model.opset_import[:]
    if kind == "an edge that nobody makes":
        model.graph.node[-1].input[0] = "nowhere"
        model.opset_import[0].version = 20
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "kind", ["external data cut short", "no set of operators", "an edge that nobody makes"]
)
def test_an_odd_file_is_refused_in_a_sentence(file: Path, kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"odd\.onnx"):
        onnx_model(str(_odd(onnx.load(file), kind, tmp_path)))


def test_the_operators_of_onnx_go_by_two_names(file: Path, tmp_path: Path) -> None:
    model, x = onnx.load(file), torch.randn(5, 6)
    model.opset_import[0].domain = "ai.onnx"
    onnx.save(model, tmp_path / "named.onnx")
    for one, other in zip(onnx_model(str(tmp_path / "named.onnx"))(x), Heads()(x), strict=True):
        torch.testing.assert_close(one, other)

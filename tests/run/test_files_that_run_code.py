"""Files of strangers in formats that can hold code: nothing of it is run."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import AutocompressError, InputError
from autocompress.targets.torch_runtime import load_program
from autocompress.workloads.onnx_file import _plain, onnx_model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return found


class Deed:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("line", ["\r", "\n", ";", "\x0c"])
def test_names_of_an_onnx_files_nodes_are_no_source_code(
    tmp_path: Path, quote: str, line: str
) -> None:
    proof = tmp_path / "proof"
    path = ac.export(Net().eval(), tmp_path / "plain.onnx", example=torch.randn(2, 3, 8, 8))
    graph = onnx.load(path)
    for number, node in enumerate(graph.graph.node):
        node.name = f"r{quote}){line}open({quote}{proof}{quote},{quote}w{quote}){line}x{number}=(1"
    evil = tmp_path / "evil.onnx"
    onnx.save(graph, evil)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(onnx_model(str(evil))(x), onnx_model(str(path))(x))
    assert not proof.exists()


NAMES = st.sampled_from(["", "Relu", "Relu_1", "/b/Relu", "/b_Relu", "/b_Relu_1", "b.Relu", "if"])


@settings(max_examples=60, deadline=None)
@given(st.tuples(NAMES, NAMES, NAMES))
def test_names_that_become_alike_stay_apart(names: tuple[str, str, str]) -> None:
    """Three operators after each other, each with its own parts: none takes another's place."""
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2, "w")
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["a"], name=names[0]),
        onnx.helper.make_node("Relu", ["a"], ["b"], name=names[1]),
        onnx.helper.make_node("Relu", ["b"], ["y"], name=names[2]),
    ]
    value = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4])
        for name in ("x", "y")
    ]
    graph = onnx.helper.make_graph(nodes, "g", value[:1], value[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    model.ir_version = 8
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/m.onnx")
        named = [name for name in names if name]
        if len(set(named)) < len(named):  # ONNX Runtime takes no two nodes of one name
            with pytest.raises(InputError, match="same node name"):
                onnx_model(f"{folder}/m.onnx")
            return
        again = onnx_model(f"{folder}/m.onnx")
    x = torch.tensor([[1.0, -1.0, 2.0, 0.0]])
    assert torch.equal(again(x), (2 * x).relu())


@given(st.text(min_size=1))
def test_any_name_becomes_one_that_a_module_may_have(text: str) -> None:
    name = _plain(text)
    holder = nn.Module()
    holder.add_module(name, nn.Identity())
    assert re.fullmatch(r"\w+", name)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "part", ["sample_inputs/model.pt", "constants/custom_obj_0", "constants/opaque_obj_a/b"]
)
def test_pickles_in_an_exported_program_are_not_opened(tmp_path: Path, part: str) -> None:
    path = tmp_path / "net.pt2"
    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, path)
    load_program(path)
    proof, evil = tmp_path / "proof", tmp_path / "evil.pt2"
    deed = pickled(Deed(proof))
    replaced = False
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(evil, "w") as changed:
        for name in whole.namelist():
            mine = name.endswith(part)
            replaced = replaced or mine
            changed.writestr(name, deed if mine else whole.read(name))
        if not replaced:
            changed.writestr(f"{whole.namelist()[0].partition('/')[0]}/data/{part}", deed)
    with pytest.raises(InputError, match="cannot open"):
        load_program(evil)
    with pytest.raises(AutocompressError):
        ac.bench(evil, target={"runtime": "torch"})
    assert not proof.exists()

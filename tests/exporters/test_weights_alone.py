"""Layers with several weights in fewer bits: attention and recurrent layers, packed sequences too.

The oracle is torch itself, run with weights that are rounded here, row by row.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.exporters.write import export
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.nested import named_tensors
from autocompress.techniques.compressed import Compressed, Precision

Inputs = Tensor | dict[str, Tensor]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.own = nn.Linear(8, 16), nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        answer: Tensor = self.own(x, x, x, need_weights=False)[0]
        return x + answer


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], *, both: bool) -> None:
        super().__init__()
        self.own = kind(8, 12, 2, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.own(x)[0]
        return answer


class Packed(nn.Module):
    """Sequences of unlike lengths, sorted and packed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.own = nn.Linear(8, 8), nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.i(x), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (hidden, _) = self.own(packed)
        return torch.cat([hidden[-2], hidden[-1]], 1)


def sequences(count: int) -> Tensor:
    return torch.randn(count, 6, 8)


def lengths(count: int) -> dict[str, Tensor]:
    return {"x": sequences(count), "lengths": torch.randint(2, 7, (count,))}


CASES = {
    "attention": (Attending, sequences),
    "lstm": (lambda: Recurrent(nn.LSTM, both=False), sequences),
    "lstm, two ways": (lambda: Recurrent(nn.LSTM, both=True), sequences),
    "gru": (lambda: Recurrent(nn.GRU, both=True), sequences),
    "lstm, packed": (Packed, lengths),
}


def written(model: nn.Module, inputs: Inputs, bits: tuple[int, int], path: Path) -> Path:
    policy = Policy({"own": LayerPolicy(weight_bits=bits[0], activation_bits=bits[1])})
    precisions = {"own": Precision(*bits)}
    compressed = Compressed(model, policy, CompressionSettings(), precisions=precisions)
    return export(compressed, path, inputs).path


def answer(path: Path, inputs: Inputs) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # fused kernels for weights in few bits round what they are multiplied by as well
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    parts = [part.numpy() for _, part in named_tensors(inputs)]
    names = [i.name for i in session.get_inputs()]
    found: np.ndarray = session.run(None, dict(zip(names, parts, strict=True)))[0]
    return found


def called(model: nn.Module, inputs: Inputs) -> np.ndarray:
    with torch.no_grad():
        found: Tensor = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found.numpy()


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """Weights of ``own`` on their grid; both directions of a recurrent layer share scales."""
    model = copy.deepcopy(model)
    held = {n: p for n, p in model.get_submodule("own").named_parameters() if p.dim() == 2}
    limit = 2 ** (bits - 1) - 1
    for name, weight in held.items():
        other = held.get(f"{name}_reverse", held.get(name.removesuffix("_reverse"), weight))
        scale = torch.maximum(weight.abs().amax(1), other.abs().amax(1))[:, None].detach() / limit
        setattr(weight, "grid", (weight.detach() / scale).round() * scale)  # noqa: B010  (tensors have no such attribute for mypy)
    with torch.no_grad():
        for weight in held.values():
            weight.copy_(weight.grid)
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_file_holds_the_rounded_weights(name: str, bits: int, tmp_path: Path) -> None:
    make, draw = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    path = written(model, draw(2), (bits, 32), tmp_path / "m.onnx")
    fresh = draw(5)
    wanted = called(rounded(model, bits), fresh)
    np.testing.assert_allclose(answer(path, fresh), wanted, rtol=1e-3, atol=1e-4)


def test_a_packed_sequence_runs_on_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Packed().eval()
    path = written(model, lengths(2), (8, 8), tmp_path / "m.onnx")
    fresh = lengths(5)
    wanted = called(model, fresh)
    # twice what an LSTM loses in 8 bits where 8-bit products saturate
    assert np.linalg.norm(answer(path, fresh) - wanted) < 0.2 * np.linalg.norm(wanted)
    import onnx

    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "DynamicQuantizeLSTM" in kinds

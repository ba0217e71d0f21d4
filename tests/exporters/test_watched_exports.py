"""What a trace would take for constants: lengths of batches, weights divided at a size, values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from file_checks import check_file
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.calibrate import calibrate
from autocompress.errors import ExportError
from autocompress.exporters.agreement import check_graph
from autocompress.exporters.onnx_graph import Exporter, float_graph
from autocompress.exporters.write import export
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target
from autocompress.techniques.compressed import Compressed, Precision

EXPORTERS: tuple[Exporter, ...] = ("torchscript", "dynamo")


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)
        self.token = nn.Parameter(torch.randn(1, 64))


class Viewed(Images):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(len(x), -1))


class Filled(Images):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(1)
        out = torch.zeros(len(x), 64)
        out[:, ::2] = x[:, ::2]
        return self.head(out + self.token.expand(len(x), -1) * len(self.token))


class Picked(Images):
    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.conv(x).flatten(1))
        return x[torch.arange(len(x)), (x > 0).long().sum(1) % 3]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind", [Viewed, Filled, Picked])
def test_the_length_of_a_batch_stays_free(kind: type[nn.Module], exporter: Exporter) -> None:
    torch.manual_seed(0)
    model, inputs = kind().eval(), torch.randn(5, 3, 6, 6)
    graph = float_graph(model, inputs[:1], exporter)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        (found,) = session.run(None, {"input": inputs[:count].numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(inputs[:count]), rtol=1e-4, atol=1e-5)


def test_lengths_are_numbers_outside_of_exports() -> None:
    with torch.no_grad():
        float_graph(Viewed().eval(), torch.randn(1, 3, 6, 6))
    assert type(len(torch.zeros(3, 2))) is int


class Cross(nn.Module):
    """Queries of one stream, keys and values of another: weights are divided in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        other = self.two(x.flip(1))
        return self.attention(self.one(x), other, other, need_weights=False)[0]


def test_attention_to_another_stream_runs_on_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs, path = Cross().eval(), torch.randn(40, 5, 6), tmp_path / "cross.onnx"
    names, layer = ("one", "two", "attention"), LayerPolicy(weight_bits=8, activation_bits=8)
    compressed = Compressed(
        model,
        Policy(dict.fromkeys(names, layer)),
        CompressionSettings(),
        precisions=dict.fromkeys(names, Precision(8, 8)),
        parts={name: (name,) for name in names},
    )
    compressed = calibrate(compressed, inputs)
    export(compressed, path, inputs[:2])
    assert check_file(get_target("onnxruntime"), path, compressed) == []


class Squeezed(nn.Module):
    """One number per sample; of one sample, without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()).squeeze()


class Pairs(nn.Module):
    """Multiplies by a module that is no layer, beside a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Bilinear(16, 6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x), x)


@pytest.mark.parametrize(("model", "names"), [(Squeezed, ("one", "two")), (Pairs, ("one",))])
def test_integer_files_run_on_batches_and_keep_their_promises(
    model: type[nn.Module], names: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, inputs, path = model().eval(), torch.randn(40, 6), tmp_path / "model.onnx"
    compressed = Compressed(
        module,
        Policy(dict.fromkeys(names, LayerPolicy(weight_bits=8, activation_bits=8))),
        CompressionSettings(),
        precisions=dict.fromkeys(names, Precision(8, 8)),
        parts={name: (name,) for name in names},
    )
    compressed = calibrate(compressed, inputs)
    export(compressed, path, inputs[:2])
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": inputs.numpy()})
    with torch.no_grad():
        wanted = module(inputs).numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    assert check_file(get_target("onnxruntime"), path, compressed) == []


class Listed(nn.Module):
    """Decides in Python, by the sign of each sample's first number."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        signs = torch.tensor([float(value > 0) for value in x[:, 0].tolist()])
        return self.two(F.relu(self.one(x))) * (signs[:, None] + 0.5)


class Arrays(Listed):
    def forward(self, x: Tensor) -> Tensor:
        signs = torch.from_numpy(np.sign(x[:, :1].numpy()))
        return self.two(F.relu(self.one(x))) * signs


class Lengths(nn.Module):
    """As long as its padding says, which Python reads."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens != 0).sum(1).tolist()
        return self.head(self.words(tokens)[:, : max(lengths)].mean(1))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Listed(), torch.rand(2, 6)),
        (Arrays(), torch.rand(2, 6)),
        (Lengths(), torch.randint(1, 20, (2, 7))),
    ],
    ids=["list", "array", "lengths"],
)
def test_values_that_python_reads_are_no_constants(model: nn.Module, inputs: Tensor) -> None:
    # both samples go the same way, so that on them a file with constants agrees
    with pytest.raises(ExportError, match=r"must compute what the module computes|does not run"):
        float_graph(model.eval(), inputs[:1], check=lambda graph: check_graph(model, graph, inputs))


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(4, 4, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        return self.turn(torch.view_as_complex(x)).abs()


def test_what_no_file_holds_is_named_with_the_remedy() -> None:
    with pytest.raises(ExportError) as refusal:
        float_graph(Spectrum().eval(), torch.randn(2, 4, 2))
    said = str(refusal.value)
    assert "view_as_complex" in said
    assert "runtime: torch" in said
    assert "\n" not in said
    assert "\x1b" not in said
    assert "PR to PyTorch" not in said

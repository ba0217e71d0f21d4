"""The simulation is the file: layers that run often, attention, recurrent layers, encoders."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.calibrate import calibrate
from autocompress.exporters.again import handed_out
from autocompress.exporters.write import export
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.quantize import simulate, trainable


class Loop(nn.Module):
    """One layer that runs three times, on inputs that grow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for _ in range(3):
            x = 3 * x + torch.tanh(self.again(x))
        return self.last(x)


class Attends(nn.Module):
    """Attention of torch's between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.odd = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.odd(x, x, x, need_weights=False)[0])


class Recurs(nn.Module):
    """An LSTM between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.odd, self.last = (
            nn.Linear(8, 16),
            nn.LSTM(16, 16, batch_first=True),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.odd(self.first(x))[0])


class Encodes(nn.Module):
    """An encoder layer of torch's, which has a fused path of its own."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.encoder, self.last = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(x))


class Unpools(nn.Module):
    """Max pooling that also gives places, and what undoes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(F.relu(self.first(x)), 2, return_indices=True)
        return self.last(F.max_unpool2d(x, places, 2))


def _made(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model, torch.randn(64, *shape)


def _calibrated(
    model: nn.Module, inputs: Tensor, layers: dict[str, Precision], **settings: object
) -> Compressed:
    given = CompressionSettings.model_validate({"calibration_images": 64, **settings})
    return calibrate(Compressed(model, Policy(), given, precisions=layers), inputs)


def _of_file(path: Path, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    return torch.from_numpy(np.asarray(found))


def _far(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


INTEGER = Precision(8, 8, reduced=True)


class Mixed(nn.Module):
    """Integer linear layers whose outputs, and inputs, floats read as well."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(8, 16), nn.Linear(16, 16)
        self.norm, self.cell, self.last = nn.LayerNorm(16), nn.GRUCell(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        match self.how:
            case "norm and sum":
                y = self.norm(y)
                y = self.b(y) + y
            case "output and layer":
                y = F.gelu(self.b(y)) + F.gelu(y)
            case "relu and layer":
                y = F.relu(y)
                y = F.gelu(self.b(y)) + F.gelu(y)
            case "input":
                y = F.gelu(y) + torch.cat([x, x], -1)
            case "turned":
                y = self.norm(y.transpose(0, -1).transpose(0, -1))
            case "cell":
                y = F.relu(y)
                y = self.cell(y) if y.dim() == 2 else self.cell(y[:, 0], self.cell(y[:, 1]))
            case "sum":
                y = F.tanh(y + self.a(x * 0.5))
            case function:
                y = self.norm(getattr(F, function)(y))
        return self.last(y)


_FUNCTIONS = (
    *("relu", "relu6", "elu", "leaky_relu", "softplus", "softsign", "tanh", "sigmoid", "silu"),
    *("hardswish", "hardsigmoid", "gelu", "selu"),
)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(
    "how",
    [
        *_FUNCTIONS,
        *("norm and sum", "output and layer", "relu and layer", "input", "turned", "cell", "sum"),
    ],
)
def test_what_floats_read_of_integer_linear_layers_is_not_rounded(
    how: str, axes: int, tmp_path: Path
) -> None:
    """File and simulation are the same function, and the kernels are integer all the same."""
    model, inputs = _made(lambda: Mixed(how), (8,) if axes == 1 else (5, 8))
    used = [name for name in "ab" if name == "a" or how.split(" ")[-1] in ("sum", "layer")]
    if how == "sum":
        used = ["a"]
    made = _calibrated(model, inputs, dict.fromkeys(used, INTEGER), bias_correction=False)
    path = export(made, tmp_path / "m.onnx", inputs[:2]).path
    with torch.no_grad():
        wanted, real = simulate(made)(inputs), model(inputs)
    found = _of_file(path, inputs)
    assert float((wanted - real).abs().max()) > 1e-3 * float(real.std())
    # a value near the middle of two levels may go to either: runtimes add up in other orders
    other = ~torch.isclose(found, wanted, rtol=1e-4, atol=2e-4 * float(real.std()))
    assert float(other.float().mean()) < 0.05
    with closing(get_target("onnxruntime").open(path)) as session:
        ops = [node.op for node in session.profile([inputs[:1].numpy()], runs=2).nodes]
    assert ops.count("QGemm") == len(used) + (how == "sum")


@pytest.mark.parametrize(
    ("make", "shape", "layers"),
    [
        (Loop, (8,), {"again": INTEGER}),
        (Loop, (8,), {"first": INTEGER, "again": INTEGER, "last": INTEGER}),
        (Loop, (8,), {"again": Precision(4, 32)}),
        (Encodes, (5, 8), {"encoder.layers.0.linear1": Precision(2, 32)}),
        (Encodes, (5, 8), {"encoder.layers.0.linear1": INTEGER, "last": INTEGER}),
        (Unpools, (3, 8, 8), {"first": INTEGER}),
        (Unpools, (3, 8, 8), {"first": INTEGER, "last": INTEGER}),
    ],
)
@pytest.mark.parametrize("handed", [False, True])
def test_it_is_what_the_file_computes(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    layers: dict[str, Precision],
    handed: bool,
    tmp_path: Path,
) -> None:
    """Also of the module handed out."""
    model, inputs = _made(make, shape)
    made = _calibrated(model, inputs, layers)
    found = _of_file(export(made, tmp_path / "m.onnx", inputs[:2]).path, inputs)
    simulated = handed_out(made, inputs[:2]) if handed else simulate(made)
    with torch.no_grad():
        wanted, real = simulated(inputs), model(inputs)
        again = simulated(inputs)
    torch.testing.assert_close(again, wanted)  # one run leaves nothing behind for the next
    lost = _far(found, real)
    assert lost > 1e-4  # there is something to simulate
    assert _far(wanted, real) < 1.5 * lost
    assert _far(found, wanted) < 0.8 * lost + 0.002


class Images(nn.Module):
    """Integer convolutions whose outputs floats read."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.last = nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        match self.how:
            case "norm":
                y = self.norm(y)
            case "relu, norm":
                y = self.norm(F.relu(y))
            case "clip, pooling, norm":
                y = self.norm(F.max_pool2d(y.clamp(-1, 1.5), 3, 1, 1))
            case "layer, norm":
                y = F.relu(y)
                y = F.gelu(self.b(y)) + self.norm(y)
            case "twice":
                y = F.gelu(self.b(F.gelu(self.b(F.relu(y)))))
        return self.last(y)


@pytest.mark.parametrize(
    "how", ["norm", "relu, norm", "clip, pooling, norm", "layer, norm", "twice"]
)
def test_what_integer_convolutions_write_is_rounded_for_floats_too(
    how: str, tmp_path: Path
) -> None:
    model, inputs = _made(lambda: Images(how), (3, 7, 7))
    used = ["a", "b"] if how in ("layer, norm", "twice") else ["a"]
    made = _calibrated(model, inputs, dict.fromkeys(used, INTEGER), bias_correction=False)
    found = _of_file(export(made, tmp_path / "m.onnx", inputs[:2]).path, inputs)
    with torch.no_grad():
        wanted, real = simulate(made)(inputs), model(inputs)
    other = ~torch.isclose(found, wanted, rtol=1e-4, atol=2e-4 * float(real.std()))
    assert float(other.float().mean()) < 0.15


@pytest.mark.parametrize("make", [Attends, Recurs])
@pytest.mark.parametrize("bits", [3, 4])
def test_rounded_weights_of_whole_layers_are_seen(
    make: Callable[[], nn.Module], bits: int, tmp_path: Path
) -> None:
    """Inner activations aside: the simulation is nearer to the file than the float network is."""
    model, inputs = _made(make, (6, 8))
    made = _calibrated(model, inputs, {"odd": Precision(bits, 8, reduced=True)})
    found = _of_file(export(made, tmp_path / "m.onnx", inputs[:2]).path, inputs)
    with torch.no_grad():
        real = model(inputs)
        for module in (simulate(made), trainable(made).eval()):
            assert _far(module(inputs), real) > 0.3 * _far(found, real)
            assert _far(found, module(inputs)) < 0.5 * _far(found, real)


@pytest.mark.parametrize("make", [Attends, Recurs, Encodes])
def test_whole_layers_learn_through_their_rounding(make: Callable[[], nn.Module]) -> None:
    model, inputs = _made(make, (6, 8))
    name = "odd" if make is not Encodes else "encoder.layers.0.self_attn"
    made = Compressed(model, Policy(), CompressionSettings(), precisions={name: Precision(4, 8)})
    module = trainable(made)
    module(inputs).square().mean().backward()
    layer = model.get_submodule(name)
    weights = [n for n, p in layer.named_parameters() if p.dim() > 1]
    inner = module.get_submodule(name).get_submodule("layer")
    assert len(weights) >= 2
    for weight in weights:
        gradient = inner.get_parameter(weight).grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_one_correction_serves_all_calls(bits: int, seed: int) -> None:
    """A layer that runs twice on one input loses the same twice, and its bias makes up once."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(x) + self.layer(x))

    torch.manual_seed(seed)
    model, inputs = Twice().eval(), torch.rand(64, 8) + 0.5
    made = _calibrated(model, inputs, {"layer": Precision(bits, 32)}, weight_rounding="nearest")
    assert made.folded is not None
    folded = simulate(made).get_submodule("layer.layer")
    lost = model.layer.weight - simulate(made).get_submodule("layer")._rounded("weight")
    wanted = model.layer.bias + lost @ inputs.mean(0)
    torch.testing.assert_close(folded.get_parameter("bias"), wanted, rtol=1e-4, atol=1e-5)

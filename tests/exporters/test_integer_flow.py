"""What lies between integer layers: paddings, data movement and activations stay on integers."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from file_checks import check_file
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.calibrate import calibrate
from autocompress.build.ranges import tensor_ranges
from autocompress.exporters.onnx_glue import multipliers, shared_ranges
from autocompress.exporters.onnx_integers import Integers, clean_up
from autocompress.exporters.onnx_pads import fold_padding
from autocompress.exporters.onnx_quantize import static_integers
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.saturation import settled
from autocompress.targets import get_target
from autocompress.techniques.compressed import Compressed, Precision, Range
from autocompress.techniques.quantize import simulate

PADDED = """
<ir_version: 10, opset_import: ["": 18]>
padded (float[2, 3, 9, 7] x) => (float[N, C, H, W] y) {{
    p = Pad{mode}(x, widths{fill})
    y = {reader}
}}
"""
CONV = "Conv<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1]>(p, weight)"
POOL = "AveragePool<kernel_shape=[3, 3]{more}>(p)"
AROUND = [0, 0, 0, 1, 0, 0, 1, 2]


def padded(
    reader: str, widths: list[int], mode: str = "", fill: float | None = 0.0
) -> onnx.ModelProto:
    given = "" if fill is None else ", value"
    text = PADDED.format(reader=reader, mode=mode, fill=given)
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    values = {"widths": np.array(widths), "weight": weight, "value": np.float32(fill or 0.0)}
    used = {i for n in model.graph.node for i in n.input}
    for name in used & set(values):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values[name]), name))
    return model


def answer(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize(
    ("reader", "widths", "mode", "fill", "folds"),
    [
        (CONV, AROUND, "", 0.0, True),
        (CONV, AROUND, "", None, True),
        (CONV, AROUND, '<mode="constant">', 0.0, True),
        (POOL.format(more=""), AROUND, "", 0.0, True),
        (
            POOL.format(more=", pads=[1, 1, 1, 1], count_include_pad=1"),
            [0] * 7 + [1],
            "",
            0.0,
            True,
        ),
        (POOL.format(more=", pads=[1, 1, 1, 1]"), [0] * 7 + [1], "", 0.0, False),
        (POOL.format(more=", strides=[2, 2], ceil_mode=1"), AROUND, "", 0.0, False),
        (POOL.format(more=""), [0, 0, 3, 0, 0, 0, 0, 0], "", 0.0, False),
        ("MaxPool<kernel_shape=[3, 3]>(p)", AROUND, "", 0.0, False),
        (CONV, AROUND, "", 1.0, False),
        (CONV, AROUND, '<mode="edge">', None, False),
        (CONV, [0, 0, 0, -1, 0, 0, 1, 0], "", 0.0, False),
        ("Relu(p)", [0, 1, 0, 0, 0, 0, 0, 0], "", 0.0, False),
    ],
)
def test_zeros_around_images_become_the_readers_own(
    reader: str, widths: list[int], mode: str, fill: float | None, folds: bool
) -> None:
    model = padded(reader, widths, mode, fill)
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 7)).astype(np.float32)
    wanted = answer(model, x=x)
    fold_padding(model)
    assert any(n.op_type == "Pad" for n in model.graph.node) is not folds
    np.testing.assert_array_equal(answer(model, x=x), wanted)


def test_a_pad_that_others_read_as_well_stays_for_them() -> None:
    model = padded("Relu(c)", AROUND)
    conv = onnx.parser.parse_model(PADDED.format(reader=CONV, mode="", fill="")).graph.node[1]
    conv.output[0] = "c"
    model.graph.node.insert(1, conv)
    model.graph.node[2].input[0] = "p"
    weight = np.ones((4, 3, 3, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    fold_padding(model)
    assert [n.op_type for n in model.graph.node] == ["Pad", "Conv", "Relu"]
    assert [n.input[0] for n in model.graph.node] == ["x", "x", "p"]


class Curves(nn.Module):
    """Every activation with integer kernels, and data moved between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(F.pad(x, (0, 1, 0, 1))))
        gate = F.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        one, other = (x * gate).chunk(2, 1)
        one = F.silu(self.left(one))
        other = F.leaky_relu(self.right(F.max_pool2d(other, 3, 1, 1)))
        x = F.interpolate(torch.cat([one, other], 1), scale_factor=2.0)
        x = F.relu6(self.last(F.pad(x, (1, 0, 2, 0), "reflect")))
        return self.head(x.mean((2, 3)))


class Words(nn.Module):
    """Linear layers on three axes: attention, GELU and ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.more, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.inner(x, x, x, need_weights=False)[0])
        x = x + self.narrow(F.gelu(self.wide(x)))
        return self.head(F.relu(self.more(x)))


NETWORKS = {"curves": (Curves, (3, 24, 24)), "words": (Words, (7, 16))}


@cache
def quantized(name: str) -> tuple[nn.Module, Compressed, Tensor]:
    """A network in 8 bits, calibrated, and its inputs."""
    torch.manual_seed(3)
    network, shape = NETWORKS[name]
    model, inputs = network().eval(), torch.randn(64, *shape)
    names = [s.name for s in take_inventory(model, inputs[:1]).layers if not s.why_not("quantize")]
    settings = settled(CompressionSettings(bias_correction=False), get_target("onnxruntime"))
    precision = Precision(8, 8, reduced=settings.weight_range == "reduced")
    made = Compressed(model, Policy(), settings, precisions=dict.fromkeys(names, precision))
    return model, calibrate(made, inputs), inputs


def profile(compressed: Compressed, inputs: Tensor, path: Path) -> Counter[str]:
    export(compressed, path, inputs[:2])
    target = get_target("onnxruntime")
    assert check_file(target, path, compressed) == []
    with closing(target.open(path)) as session:
        return Counter(node.op for node in session.profile([inputs[:1].numpy()], runs=2).nodes)


def of_runtime(path: Path, inputs: Tensor) -> Tensor:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


def test_nothing_between_integer_layers_is_a_float(tmp_path: Path) -> None:
    _, compressed, inputs = quantized("curves")
    found = profile(compressed, inputs, tmp_path / "m.onnx")
    assert found["QuantizeLinear"] == 1  # of the input
    assert found["DequantizeLinear"] == 0  # the last kernel writes floats
    assert not found.keys() & {"Conv", "Gemm", "Sigmoid", "HardSigmoid", "Mul", "Concat", "MaxPool"}
    assert found["QLinearConv"] == 5
    assert found["QLinearSigmoid"] == 1
    assert found["Pad"] == 1  # reflected, on integers


def test_linear_layers_on_three_axes_add_their_bias_to_integers(tmp_path: Path) -> None:
    _, compressed, inputs = quantized("words")
    found = profile(compressed, inputs, tmp_path / "m.onnx")
    assert found["QGemm"] == 6
    # one for each tensor that integer layers read: floats are not rounded where floats read them
    assert found["QuantizeLinear"] == 5
    assert found["DequantizeLinear"] == 0
    assert found["Gelu"] == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_files_compute_what_their_simulation_computes(name: str, tmp_path: Path) -> None:
    model, compressed, inputs = quantized(name)
    path = export(compressed, tmp_path / "m.onnx", inputs[:2]).path
    with torch.no_grad():
        wanted, real = simulate(compressed)(inputs), model(inputs)
    graph = onnx.load(path).graph
    read = {i for node in graph.node for i in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read  # the runtime warns of others
    found = of_runtime(path, inputs)
    assert float((found - wanted).abs().mean()) < 0.05 * float(real.std())
    assert float((found - real).abs().mean()) < 0.15 * float(real.std())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_runtime_merges_nothing_that_changes_the_result(name: str, tmp_path: Path) -> None:
    """The file as it is written, operator by operator, is the oracle."""
    _, compressed, inputs = quantized(name)
    path = export(compressed, tmp_path / "m.onnx", inputs[:2]).path
    plain = torch.from_numpy(answer(onnx.load(str(path)), input=inputs.numpy()))
    found = of_runtime(path, inputs)
    assert float((found - plain).abs().max()) < 0.05 * float(plain.std())


@pytest.mark.parametrize("low", [-9.0, -2.5, 0.0])
def test_saturated_levels_are_the_hard_curves(low: float) -> None:
    """By brute force over all levels of an input, against the curve itself."""
    text = """
    <ir_version: 10, opset_import: ["": 18]>
    curves (float[256] x) => (float[256] a, float[256] b) {
        a = HardSwish(x)
        g = HardSigmoid<alpha = 0.25, beta = 0.375>(x)
        b = Mul(g, x)
    }
    """
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, ("swish", "gate", "end"), strict=True):
        node.name = name
    x = np.linspace(low, 8.0, 256, dtype=np.float32)
    wanted = {"a": x * np.clip(x / 6 + 0.5, 0, 1), "b": x * np.clip(0.25 * x + 0.375, 0, 1)}
    own = {name: Range(min(0.0, float(y.min())), 8.0) for name, y in wanted.items()}
    work = Integers(
        model,
        {"swish", "gate", "end"},
        {"x": Range(low, 8.0), "g": Range(0.0, 1.0), **own},
    )
    work.prepare()
    assert sum(n.name.endswith("_levels") for n in work.model.graph.node) == 2
    made = static_integers(work, {}, reduced=False)
    clean_up(made, work)
    assert not any(n.name.endswith("_levels") for n in made.graph.node)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, found in zip("ab", session.run(["a", "b"], {"x": x}), strict=True):
        # half a step of the input, the gate and the output each, and what the gate multiplies
        step = (8.0 - low) / 255
        assert np.abs(found - wanted[name]).max() < 2 * step + 8.0 / 255


JOINED = """
<ir_version: 10, opset_import: ["": 18]>
joined (float[1, 4, 8, 8] x) => (float[N, C, H, W] y) {
    a = MaxPool<kernel_shape = [1, 1]>(x)
    b = Relu(a)
    y = Concat<axis = 1>(b, z, w)
}
"""


def test_one_scale_goes_through_a_region_but_never_past_a_clipping() -> None:
    model = onnx.parser.parse_model(JOINED)
    for node in model.graph.node:
        node.name = node.op_type
    own = {
        "x": Range(-1.0, 3.0),
        "a": Range(-1.5, 2.0),
        "b": Range(0.0, 2.0),
        "z": Range(-2.0, 2.0),
        "w": Range(-0.1, 0.1),
        "y": Range(-2.0, 3.0),
    }
    found = shared_ranges(model.graph, ["MaxPool", "Relu", "Concat"], own)
    assert found["x"] == found["a"] == Range(-1.5, 3.0)
    # a range below zero would let through what ReLU takes away
    assert found["b"] == own["b"]
    assert found["z"] == found["y"] == Range(-2.0, 3.0)
    assert found["w"] == own["w"]  # one scale for all would leave it eight of 256 levels


def test_multipliers_are_never_clipped() -> None:
    """The range of least error would cut off the few values near one, which pass others whole."""
    _, compressed, inputs = quantized("curves")
    assert compressed.ranges is not None
    watched = compressed.graph
    names = multipliers(watched.graph, [n.name for n in watched.graph.node])
    assert len(names) == 2
    for name in names:
        extremes = tensor_ranges(
            watched, [name], inputs, compressed.settings.model_copy(update={"ranges": "minmax"})
        )
        assert compressed.ranges[name] == extremes[name]

"""Both exporters of torch under one contract: outputs, canonical names, integer kernels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from small_networks import NETWORKS, example, make
from torch import Tensor, nn

from autocompress.build.ranges import tensor_ranges
from autocompress.errors import CalibrationError, ExportError
from autocompress.exporters import onnx_graph
from autocompress.exporters.names import layer_of
from autocompress.exporters.onnx_graph import Exporter, float_graph
from autocompress.exporters.onnx_quantize import plan_nodes, quantize_graph, quantized_tensors
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.model.tracing_stubs import unfused_attention
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target
from autocompress.targets.profile import KernelClass, NodeTime
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.fold import fold_batch_norms
from autocompress.workloads.models import resnet20, seeded

EXPORTERS: tuple[Exporter, ...] = ("torchscript", "dynamo")
MULTIPLYING = ("Conv", "Gemm", "MatMul", "LSTM", "GRU")
LAYERS = (nn.Conv2d, nn.Linear, nn.LSTM, nn.GRU, nn.MultiheadAttention)


class Block(nn.Module):
    """Calls ``conv`` twice, around a module whose name looks like a second call of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.conv_1 = nn.Conv2d(4, 4, 1)
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(self.conv(self.conv_1(self.conv(x))))


class Named(nn.Module):
    """Every way to hold and to call a module that makes its name hard to tell."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block1_1 = Block(), Block()
        shared = nn.Conv2d(4, 4, 3, padding=1)
        self.chain = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(shared))
        self.by_name = nn.ModuleDict({"0": nn.Linear(4, 4), "two": nn.ModuleDict()})
        self.by_name["two"]["fc_2"] = nn.Linear(4, 4)
        self.by_name["in stock #1/é %20"] = nn.Linear(4, 4)
        self.by_place = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.cell = nn.LSTM(4, 4, 2, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(x, 4)
        x = self.chain(self.block1(self.block1_1(self.block1(torch.cat([x, x[:, :1]], 1)))))
        x = self.chain[0](nn.functional.conv2d(x, self.block1.conv_1.weight))
        y = self.cell(x.flatten(2).transpose(1, 2))[0]
        words = (self.by_name["two"]["fc_2"], self.by_name["in stock #1/é %20"])
        for layer in (self.by_name["0"], *self.by_place, *words):
            y = layer(y)
        for _ in range(2):
            y = self.attention(y, y, y, need_weights=False)[0]
        return self.head(self.cell(y)[0][:, -1])


def network(name: str) -> nn.Module:
    """One of the small networks, the one with hard names, or ResNet-20; norms folded."""
    others: dict[str, Callable[[], nn.Module]] = {"named": Named, "resnet20": resnet20}
    with seeded(0):
        return fold_batch_norms(others[name]().eval() if name in others else make(name))


def inputs(name: str, count: int) -> Tensor:
    if name == "resnet20":
        return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    return example(name, count, seed=7)


@cache
def graph(name: str, exporter: Exporter) -> Any:
    """As this exporter alone makes it; tests do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "_EXPORTERS", {exporter: onnx_graph._EXPORTERS[exporter]})
        return float_graph(network(name), inputs(name, 1), exporter)


def answers(model: Any, x: Tensor) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(["output"], {"input": x.numpy()})[0])


def calls_of(module: nn.Module, x: Tensor) -> Counter[str]:
    """How often each layer runs, by its own hook."""
    counted: Counter[str] = Counter()
    handles = [
        layer.register_forward_hook(lambda *_, name=name: counted.update([name]))
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS)
    ]
    with torch.no_grad(), unfused_attention():
        module(x)
    for handle in handles:
        handle.remove()
    return counted


# the dynamo exporter takes seconds for each; the others of its row run with the slow tests
_QUICK = ("option_a", "named")
PAIRS = [
    pytest.param(
        name,
        exporter,
        marks=[pytest.mark.slow] if exporter == "dynamo" and name not in _QUICK else [],
    )
    for exporter in EXPORTERS
    for name in (*NETWORKS, "named", "resnet20")
]


@pytest.mark.parametrize(("name", "exporter"), PAIRS)
def test_a_graph_computes_what_the_module_does_for_any_batch(name: str, exporter: Exporter) -> None:
    module, model = network(name), graph(name, exporter)
    onnx.checker.check_model(model)
    (dimension, *_) = model.graph.input[0].type.tensor_type.shape.dim
    assert dimension.dim_param
    for count in (1, 3):
        x = inputs(name, count)
        with torch.no_grad():
            wanted = module(x).numpy()
        np.testing.assert_allclose(answers(model, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "exporter"), PAIRS)
def test_every_call_of_every_layer_is_found_by_its_name(name: str, exporter: Exporter) -> None:
    nodes = graph(name, exporter).graph.node
    names = [n.name for n in nodes]
    assert len(set(names)) == len(names)
    found: dict[str, set[int]] = {}
    for node in nodes:
        layer = layer_of(node.name)
        if layer is not None and node.op_type in MULTIPLYING:
            found.setdefault(layer[0], set()).add(layer[1])
    wanted = calls_of(network(name), inputs(name, 1))
    for path, count in wanted.items():
        assert found.pop(path) == set(range(count)), path
    assert all("shortcut" in path for path in found)  # parameter-free, merged into a convolution


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_calls_are_counted_in_the_order_in_which_they_run(exporter: Exporter) -> None:
    nodes = graph("named", exporter).graph.node
    convolutions = [n.name for n in nodes if n.op_type == "Conv"]
    block = ["conv#{}/Conv", "conv_1#{}/Conv", "conv#{}/Conv", "body.0.0#{}/Conv", "body.1#{}/Conv"]
    calls = {"block1": [(0, 0, 1, 0, 0), (2, 1, 3, 1, 1)], "block1_1": [(0, 0, 1, 0, 0)]}
    ran = [("block1", 0), ("block1_1", 0), ("block1", 1)]
    wanted = [
        f"{path}.{name.format(call)}"
        for path, turn in ran
        for name, call in zip(block, calls[path][turn], strict=True)
    ]
    wanted += [f"chain.0#{i}/Conv" for i in range(3)] + ["graph/Conv", "chain.0#3/Conv"]
    assert convolutions == wanted


@cache
def precisions(name: str) -> dict[str, Precision]:
    """8 bits for everything that has integer kernels."""
    found = take_inventory(network(name), inputs(name, 1)).layers
    return {
        layer.name: Precision(8, 8, "dynamic" if layer.kind == "lstm" else "static")
        for layer in found
        if not layer.why_not("quantize") and layer.integer
    }


def quantized(name: str, exporter: Exporter) -> Any:
    """The integer graph, without another export."""
    float_model, settings = graph(name, exporter), CompressionSettings()
    made = Compressed(network(name), Policy(), settings, precisions(name))
    tensors = quantized_tensors(float_model, plan_nodes(float_model, made))
    ranges = tensor_ranges(float_model, tensors, inputs(name, 48), settings)
    return quantize_graph(float_model, made.with_(ranges=ranges))


def test_inputs_that_do_not_run_through_the_graph_are_told() -> None:
    float_model, settings = graph("plain", "torchscript"), CompressionSettings()
    product = float_model.graph.node[-1].output[0]
    narrow = inputs("plain", 4)[:, :1]
    with pytest.raises(CalibrationError, match="do not fit the model"):
        tensor_ranges(float_model, [product], narrow, settings)


def integer_kernels(model: Any, path: Path, x: Tensor) -> list[NodeTime]:
    path.write_bytes(model.SerializeToString())
    target = get_target("onnxruntime")
    with closing(target.open(path)) as session:
        nodes = session.profile([x.numpy()], runs=2).nodes
    return [n for n in nodes if target.classify(n) is KernelClass.INTEGER]


@pytest.mark.parametrize(("name", "exporter"), PAIRS)
def test_every_call_of_a_quantized_layer_runs_on_integers(
    name: str, exporter: Exporter, tmp_path: Path
) -> None:
    """The runtime fuses and renames operators; what it reports still tells the layer."""
    x = inputs(name, 1)
    nodes = integer_kernels(quantized(name, exporter), tmp_path / "m.onnx", x)
    found = {layer_of(n.name) for n in nodes}
    wanted = calls_of(network(name), x)
    assert found >= {(n, call) for n in precisions(name) for call in range(wanted[n])}
    assert None not in found  # a convolution of the graph itself stays as it was


@pytest.mark.parametrize(
    "name", [pytest.param(p.values[0], marks=p.marks) for p in PAIRS if p.values[1] == "dynamo"]
)
def test_quantized_files_of_both_are_alike(name: str, tmp_path: Path) -> None:
    kernels, found = [], []
    for exporter in EXPORTERS:
        model = quantized(name, exporter)
        nodes = integer_kernels(model, tmp_path / f"{exporter}.onnx", inputs(name, 1))
        kernels.append(Counter((n.op, layer_of(n.name)) for n in nodes))
        found.append(answers(model, inputs(name, 20)))
    assert kernels[0] == kernels[1]
    one, other = found
    assert np.abs(one - other).mean() < 0.05 * one.std()


def test_layer_of_splits_what_runtimes_make_of_a_name() -> None:
    split = {
        "conv1#0/Conv": ("conv1", 0),
        "layer1.0.conv1#12/Conv_1": ("layer1.0.conv1", 12),
        "fused fc1#0/Gemm": ("fc1", 0),
        "cell#1/LSTM_quant": ("cell", 1),
        "fc#0/MatMul/MatMulAddFusion": ("fc", 0),
        "conv1#0/Conv_token_3": ("conv1", 0),
        "conv1#0/Conv_output_0_QuantizeLinear": ("conv1", 0),
        "a/b#0/Conv": ("a/b", 0),
        "fused heads.in%20stock#0/Gemm": ("heads.in stock", 0),
    }
    assert {name: layer_of(name) for name in split} == split
    for name in ("graph/Add", "Conv_3", "ReorderOutput", "a#b/Conv", "a#0", "#0/Conv", ""):
        assert layer_of(name) is None, name


class Odd(nn.Module):
    """A linear layer and an operation that an exporter may not know.

    Args:
        odd: the operation.
    """

    def __init__(self, odd: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.fc(x))


def _through_numpy(x: Tensor) -> Tensor:
    return x + torch.from_numpy(np.zeros_like(x.detach().numpy()))


@pytest.mark.parametrize(
    ("exporter", "odd"), [("torchscript", torch.special.erfcx), ("dynamo", _through_numpy)]
)
def test_what_one_exporter_cannot_take_the_other_does(
    exporter: Exporter, odd: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    module, x = Odd(odd).eval(), torch.randn(3, 4)
    with caplog.at_level(logging.INFO, logger="autocompress"):
        model = float_graph(module, x[:1], exporter)
    assert f"The {exporter} exporter cannot take the model" in caplog.text
    with torch.no_grad():
        np.testing.assert_allclose(answers(model, x), module(x).numpy(), rtol=1e-4, atol=1e-5)
    assert any(layer_of(n.name) == ("fc", 0) for n in model.graph.node)


def test_what_neither_takes_is_told_with_both_reasons(tmp_path: Path) -> None:
    module = Odd(torch.special.i0).eval()
    made = Compressed(module, Policy(), CompressionSettings(), {})
    with pytest.raises(ExportError, match=r"(?s)torchscript: .*i0.*dynamo: .*i0"):
        export(made, tmp_path / "m.onnx", torch.randn(1, 4))


def test_a_program_of_torch_shows_calls_in_its_profile(tmp_path: Path) -> None:
    made = Compressed(network("shared"), Policy(), CompressionSettings(), {})
    path = export(made, tmp_path / "m.pt2", inputs("shared", 1)).path
    with closing(get_target("torch").open(path)) as session:
        nodes = session.profile([inputs("shared", 1).numpy()], runs=2).nodes
    calls = [layer_of(n.name) for n in nodes if "conv2d" in n.op]
    assert calls == [("stem", 0), ("twice", 0), ("twice", 1), ("last", 0)]

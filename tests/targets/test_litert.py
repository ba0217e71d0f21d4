"""LiteRT files hold what the policy says, as the runtime itself reads them."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured_network import images, quantized, small
from torch import Tensor, nn

from autocompress.build.calibrate import calibrate
from autocompress.errors import ExportError, InputError
from autocompress.measure.gate import inspect_file
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import KernelClass, NodeTime, get_target, registry
from autocompress.task.data import Data
from autocompress.techniques.compressed import Compressed, Precision, input_key
from autocompress.workloads.models import seeded

INT8 = Precision(8, 8)
HERE = registry.load("litert").availability()
here = pytest.mark.skipif(not HERE.available, reason=f"litert: {HERE.reason}")


def opened(path: Path) -> Any:
    """A file as the runtime reads it, without what merges its operators."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = Interpreter(model_path=str(path), experimental_op_resolver_type=plain)
    runner.allocate_tensors()
    return runner


def arithmetic(path: Path) -> dict[str, tuple[str, str]]:
    """Name of each multiplying operator's output to the types of its input and its weight."""
    runner = opened(path)
    tensors = {d["index"]: d for d in runner.get_tensor_details()}

    def kind(number: int) -> str:
        return np.dtype(tensors[number]["dtype"]).name

    return {
        tensors[each["outputs"][0]]["name"]: (kind(each["inputs"][0]), kind(each["inputs"][1]))
        for each in runner._get_ops_details()
        if each["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    }


def uniform(model: nn.Module, names: list[str], inputs: Tensor) -> Compressed:
    """Layers in 8 bits, calibrated."""
    policy = Policy(dict.fromkeys(names, LayerPolicy(weight_bits=8, activation_bits=8)))
    precisions = dict.fromkeys(names, INT8)
    plain = Compressed(model, policy, CompressionSettings(), precisions=precisions)
    return calibrate(plain, inputs)


@here
def test_a_trained_network_keeps_its_predictions_in_integers(
    resnet20_trained: nn.Module, cifar_data: Data, tmp_path: Path
) -> None:
    """On held-out images; every layer multiplies integers."""
    target = get_target("litert")
    layers = {n: m for n, m in resnet20_trained.named_modules() if hasattr(m, "weight")}
    names = [n for n, m in layers.items() if isinstance(m, nn.Conv2d | nn.Linear)]
    calibrated = uniform(resnet20_trained, names, cifar_data.train.sample(256, 0).inputs())
    held_out = cifar_data.val.inputs(400)
    answers = []
    for compressed in (Compressed(resnet20_trained, Policy(), CompressionSettings()), calibrated):
        path = tmp_path / f"{len(answers)}.tflite"
        target.export(compressed, path, cifar_data.train.inputs(2))
        with closing(target.open(path, threads=2)) as session:
            answers.append([session.run([x[None].numpy()])[0].argmax() for x in held_out])
    with torch.inference_mode():
        module = resnet20_trained(held_out).argmax(1).numpy()
    assert (np.array(answers[0]) == module).all()
    assert np.mean(np.array(answers[1]) == module) >= 0.99
    kinds = arithmetic(path)
    assert len(kinds) == len(names)
    assert set(kinds.values()) == {("int8", "int8")}


@here
def test_each_layer_has_its_own_arithmetic(tmp_path: Path) -> None:
    """Integers, ranges at run time, weights alone, float; scales are those of the calibration."""
    target = get_target("litert")
    precisions = {
        "first": INT8,
        "deep": Precision(8),
        "last": Precision(8, 8, activation_scaling="dynamic"),
    }
    compressed = quantized(small(), precisions)
    path = tmp_path / "mixed.tflite"
    assert target.export(compressed, path, images(2)).quantized == ("first", "deep", "last")
    kinds = arithmetic(path)
    assert kinds == {
        "first#0/CONV_2D": ("int8", "int8"),
        "deep#0/DEPTHWISE_CONV_2D": ("float32", "float32"),
        "last#0/CONV_2D": ("float32", "int8"),
        "head#0/FULLY_CONNECTED": ("float32", "float32"),
    }
    runner = opened(path)
    tensors = {d["index"]: d for d in runner.get_tensor_details()}
    ops = runner._get_ops_details()
    (first,) = (o for o in ops if tensors[o["outputs"][0]]["name"] == "first#0/CONV_2D")
    (scale,) = tensors[first["inputs"][0]]["quantization_parameters"]["scales"]
    assert compressed.ranges is not None
    known = compressed.ranges[input_key("first")]
    assert scale == pytest.approx((known.high - known.low) / 255, rel=1e-5)
    weights = tensors[first["inputs"][1]]
    peaks = compressed.folded.first.weight.detach().abs().flatten(1).amax(1) / 127
    np.testing.assert_allclose(weights["quantization_parameters"]["scales"], peaks, rtol=1e-5)
    assert inspect_file(target, path, compressed).problems == ()


@here
def test_the_gate_misses_integers_that_are_not_in_the_file(tmp_path: Path) -> None:
    target = get_target("litert")
    path = tmp_path / "float.tflite"
    target.export(quantized(small(), {}), path, images(2))
    claimed = quantized(small(), {"first": INT8})
    (said,) = inspect_file(target, path, claimed).problems
    assert "no integer kernel for first" in said


class Sequences(nn.Module):
    """Words, an encoder whose two layers begin alike, and a projection used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.twice = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        """From ``(batch, 6)`` to ``(batch, 16)``."""
        x = self.encoder(self.words(ids)).mean(1)
        return self.twice(torch.relu(self.twice(x)))


def sequences(count: int) -> Tensor:
    return torch.randint(0, 50, (count, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compressed, Path]:
    """A transformer with attention, linear layers and words in 8 bits."""
    with seeded(4):
        model = Sequences().eval()
    layers = (
        "encoder.layers.{}.self_attn",
        "encoder.layers.{}.linear1",
        "encoder.layers.{}.linear2",
    )
    names = [*(name.format(i) for i in range(2) for name in layers), "twice"]
    precisions = {**dict.fromkeys(names, INT8), "words": Precision(8)}
    policies = {
        n: LayerPolicy(weight_bits=p.weight_bits, activation_bits=p.activation_bits)
        for n, p in precisions.items()
    }
    plain = Compressed(model, Policy(policies), CompressionSettings(), precisions=precisions)
    compressed = calibrate(plain, sequences(64))
    path = tmp_path_factory.mktemp("texts") / "texts.tflite"
    get_target("litert").export(compressed, path, sequences(2))
    return compressed, path


@here
def test_layers_are_found_by_their_weights(texts: tuple[Compressed, Path]) -> None:
    """Equal weights of two layers are one constant of the file; a layer can be called twice."""
    compressed, path = texts
    kinds = arithmetic(path)
    called = sorted(name for name in kinds if name.startswith("twice"))
    assert called == ["twice#0/FULLY_CONNECTED", "twice#1/FULLY_CONNECTED"]
    for i in range(2):
        for part in ("self_attn", "linear1", "linear2"):
            own = [k for n, k in kinds.items() if n.startswith(f"encoder.layers.{i}.{part}")]
            assert own
            assert all(weight == "int8" for _, weight in own), part
    assert inspect_file(get_target("litert"), path, compressed).problems == ()


@here
def test_a_batch_that_the_operators_hold_is_refused(texts: tuple[Compressed, Path]) -> None:
    with pytest.raises(InputError, match="written for another batch than 3"):
        get_target({"runtime": "litert", "batch": 3}).open(texts[1])


@here
def test_sizes_that_must_stay_free_are_refused(tmp_path: Path) -> None:
    free = quantized(small(), {}).with_(dynamic={"input": {2: "height"}})
    with pytest.raises(ExportError, match="fixed sizes"):
        get_target("litert").export(free, tmp_path / "x.tflite", images(2))
    assert not list(tmp_path.iterdir())


@here
def test_weights_in_another_order_in_memory_are_told_apart(tmp_path: Path) -> None:
    """As factors are, which are cut out of larger matrices."""
    with seeded(5):
        model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6))).eval()
    for layer in model:
        layer.weight.data = layer.weight.data.transpose(2, 3).contiguous().transpose(2, 3)
    # the export itself compares file and module
    get_target("litert").export(quantized(model, {}), tmp_path / "x.tflite", images(2))
    runner = opened(tmp_path / "x.tflite")
    ops = [o for o in runner._get_ops_details() if o["op_name"] == "CONV_2D"]
    assert len({o["inputs"][1] for o in ops}) == 6


@here
def test_what_the_converter_does_not_take_is_told(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svd(x.flatten(2))[1]

    with pytest.raises(ExportError, match="litert-torch cannot convert"):
        get_target("litert").export(quantized(Odd(), {}), tmp_path / "x.tflite", images(2))


@here
def test_the_largest_8_bit_products_are_summed_exactly(tmp_path: Path) -> None:
    """As ``products_overflow`` claims: 255 * 127, so often that 16 bits would overflow."""
    layer = nn.Linear(64, 64, bias=False)
    nn.init.ones_(layer.weight)
    compressed = uniform(nn.Sequential(layer), ["0"], torch.ones(8, 64))
    path = tmp_path / "largest.tflite"
    target = get_target("litert")
    target.export(compressed, path, torch.ones(2, 64))
    assert set(arithmetic(path).values()) == {("int8", "int8")}
    with closing(target.open(path)) as session:
        np.testing.assert_allclose(session.run([np.ones((1, 64))])[0], 64, rtol=0.01)
    assert not target.products_overflow()


def test_without_its_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    found = registry.load("litert").availability()
    assert not found.available
    assert "autocompress[litert]" in found.reason


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("CONV_2D", KernelClass.FLOAT),
        ("CONV_2D_int8", KernelClass.INTEGER),
        ("DEPTHWISE_CONV_2D_dynamic", KernelClass.INTEGER),
        ("FULLY_CONNECTED", KernelClass.FLOAT),
        ("BATCH_MATMUL_int8", KernelClass.INTEGER),
        ("QUANTIZE", KernelClass.QUANTIZE),
        ("TRANSPOSE", KernelClass.LAYOUT),
        ("ADD", KernelClass.OTHER),
        ("INVOKE", KernelClass.OTHER),
    ],
)
def test_kernels_are_classed_by_the_types_that_they_work_on(op: str, kind: KernelClass) -> None:
    assert registry.load("litert").classify(NodeTime("a#0/b", op, float("nan"))) is kind

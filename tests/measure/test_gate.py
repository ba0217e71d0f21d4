"""Promises against real files in a real runtime, and sentences against profiles by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from file_checks import check_file
from measured_network import images, quantized, small
from torch import Tensor, nn

from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.measure.conversions import conversion_notes, conversions
from autocompress.measure.gate import inspect, inspect_file, layer_profile
from autocompress.measure.latency import Timing
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target
from autocompress.targets.profile import NodeTime, Profile
from autocompress.techniques.compressed import Compressed, Precision

_LAYERS = ("first", "deep", "last", "head")
_INT8 = Precision(8, 8)
ORT = get_target("onnxruntime")


def written(compressed: Compressed, folder: Path) -> Path:
    return export(compressed, folder / "model.onnx", images()).path


def timing(ratio: float, width: float = 0.02) -> Timing:
    return Timing(
        ratio, 0.1, 1.0, 0.1, ratio, ratio - width, ratio + width, 0.95, False, 12, 1.0, 1, 1
    )


def test_a_real_integer_file_keeps_its_promise(network: nn.Module, tmp_path: Path) -> None:
    compressed = quantized(network, dict.fromkeys(_LAYERS, _INT8))
    target = get_target("onnxruntime")
    assert check_file(target, written(compressed, tmp_path), compressed, timing(0.6)) == []


def test_a_float_file_that_promises_integers_is_caught(
    network: nn.Module, exported: dict[str, Path]
) -> None:
    compressed = quantized(network, dict.fromkeys(_LAYERS, _INT8))
    (problem,) = check_file(get_target("onnxruntime"), exported[".onnx"], compressed)
    assert "no integer kernel for first, deep, last, head." in problem


def test_only_the_layers_without_integer_kernels_are_named(
    network: nn.Module, tmp_path: Path
) -> None:
    """The file has an integer `head` and `last`; the policy promises `first` too."""
    path = written(quantized(network, {"last": _INT8, "head": _INT8}), tmp_path)
    promised = quantized(network, {"first": _INT8, "last": _INT8, "head": _INT8})
    (problem,) = check_file(get_target("onnxruntime"), path, promised)
    assert problem.endswith("no integer kernel for first.")


def test_a_simulated_program_earns_nothing(network: nn.Module, tmp_path: Path) -> None:
    compressed = quantized(network, dict.fromkeys(_LAYERS, _INT8))
    path = export(compressed, tmp_path / "model.pt2", images()).path
    problems = check_file(get_target("torch"), path, compressed)
    assert any("no integer kernel for first, deep, last, head" in p for p in problems)


def test_dynamic_integers_are_integers(network: nn.Module, tmp_path: Path) -> None:
    compressed = quantized(network, {"first": Precision(8, 8, "dynamic")})
    path = written(compressed, tmp_path)
    assert check_file(get_target("onnxruntime"), path, compressed) == []


def test_integers_that_nobody_asked_for_are_told(network: nn.Module, tmp_path: Path) -> None:
    """The file has an integer `deep`; the policy keeps it float."""
    path = written(quantized(network, dict.fromkeys(_LAYERS, _INT8)), tmp_path)
    asked = quantized(network, {"first": _INT8, "last": _INT8, "head": _INT8})
    (problem,) = check_file(get_target("onnxruntime"), path, asked)
    assert problem.startswith("The policy keeps deep in float, but the runtime rounds there too")


def test_half_precision_that_runs_in_32_bits_is_told(network: nn.Module, tmp_path: Path) -> None:
    compressed = quantized(network, {"first": Precision(16, 16), "head": Precision(16, 16)})
    problems = check_file(get_target("onnxruntime"), written(compressed, tmp_path), compressed)
    assert problems == [
        "The policy promises half precision, but the runtime computes in 32 bits in first, head."
    ]


@pytest.mark.parametrize("precision", [Precision(), _INT8])
def test_a_file_with_the_old_widths_is_caught(precision: Precision, tmp_path: Path) -> None:
    wide, narrow = (
        quantized(small(w), {} if precision == Precision() else dict.fromkeys(_LAYERS, precision))
        for w in (24, 8)
    )
    target = get_target("onnxruntime")
    assert check_file(target, written(narrow, tmp_path), narrow) == []
    (problem,) = check_file(target, written(wide, tmp_path), narrow)
    assert "first (8 channels promised" in problem
    assert "deep (8 channels promised" in problem
    assert "last" not in problem  # its output kept its width


def test_float_files_in_torch_show_their_widths(tmp_path: Path) -> None:
    wide, narrow = quantized(small(24), {}), quantized(small(8), {})
    path = export(wide, tmp_path / "model.pt2", images()).path
    assert check_file(get_target("torch"), path, wide) == []
    (problem,) = check_file(get_target("torch"), path, narrow)
    assert "first (8 channels promised, output [1, 24, 8, 8])" in problem


def by_hand(*nodes: tuple[str, str, float]) -> Profile:
    return Profile(tuple(NodeTime(n, op, ms) for n, op, ms in nodes), sum(n[2] for n in nodes))


def problems_of(
    profile: Profile, compressed: Compressed | None = None, timing: Timing | None = None
) -> list[str]:
    return inspect(ORT, profile, compressed).judged(timing).problems


def two_layers() -> Compressed:
    module = nn.Sequential()
    module.add_module("a", nn.Linear(4, 4))
    module.add_module("b", nn.Linear(4, 4))
    precisions = {"a": _INT8, "b": _INT8}
    return Compressed(module, Policy(), CompressionSettings(), precisions=precisions)


_SLOW = by_hand(
    ("input_QuantizeLinear", "QuantizeLinear", 0.4),
    ("a#0/MatMul_quant", "MatMulInteger", 0.1),
    ("b#0/MatMul", "MatMul", 0.9),
    ("b#0/Relu", "Relu", 2.0),
    ("output_DequantizeLinear", "DequantizeLinear", 0.3),
)


def test_a_slower_quantized_file_names_the_operators_to_blame() -> None:
    problems = problems_of(_SLOW, two_layers(), timing(1.4))
    assert problems[0].endswith("no integer kernel for b.")
    assert "takes 1.40 times as long (at least 1.38)" in problems[1]
    assert problems[1].endswith(
        "Operators to blame: MatMul (1 node, 0.900 ms), QuantizeLinear (1 node, 0.400 ms), "
        "DequantizeLinear (1 node, 0.300 ms)."
    )


def test_speed_is_judged_only_where_it_was_measured_and_certain() -> None:
    assert len(problems_of(_SLOW, two_layers())) == 1
    assert len(problems_of(_SLOW, two_layers(), timing(1.01, width=0.05))) == 1
    assert len(problems_of(_SLOW, two_layers(), timing(0.8))) == 1


def test_without_a_policy_only_quantized_files_are_judged() -> None:
    (problem,) = problems_of(_SLOW, timing=timing(1.4))
    assert problem.startswith("The quantized file is slower")
    plain = by_hand(("a#0/MatMul", "MatMul", 1.0))
    assert problems_of(plain, timing=timing(1.4)) == []


def test_a_profile_without_layers_is_judged_by_counting() -> None:
    fused = by_hand(("one", "QGemm", 1.0), ("two", "QGemm", 1.0))
    assert problems_of(fused, two_layers()) == []
    (problem,) = problems_of(by_hand(("one", "QGemm", 1.0)), two_layers())
    assert "promises 8-bit arithmetic in 2 layers" in problem
    assert "shows 1 integer kernels" in problem


def test_operators_are_found_by_their_names() -> None:
    profile = by_hand(
        ("block.0.conv#0/Conv_token_3", "QLinearConv", 1.0),
        ("block.0#0/Add", "QLinearAdd", 1.0),
        ("Transpose", "Transpose", 1.0),
    )
    found = layer_profile(profile, ["block", "block.0", "block.0.conv", "other"])
    assert {name: [n.op for n in nodes] for name, nodes in found.items()} == {
        "block.0.conv": ["QLinearConv"],
        "block.0": ["QLinearAdd"],
    }


def test_what_an_integer_layer_does_beside_multiplying_does_not_count() -> None:
    profile = by_hand(
        ("a#0/MatMul", "QLinearMatMul", 1.0),
        ("a#0/Softmax", "QLinearSoftmax", 1.0),
        ("a#0/Add", "QLinearAdd", 1.0),
        ("a#0/Mul", "Mul", 1.0),
    )
    compressed = replace(two_layers(), precisions={"a": _INT8})
    assert problems_of(profile, compressed) == []


class Attentive(nn.Module):
    """Self-attention over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0].mean(1)


class Recurrent(nn.Module):
    """An LSTM over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(16, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


@pytest.mark.parametrize(
    ("network", "scaling"),
    [(Attentive, "static"), (Attentive, "dynamic"), (Recurrent, "dynamic")],
)
def test_integer_attention_and_recurrent_layers_keep_their_promise(
    network: type[nn.Module], scaling: str, tmp_path: Path
) -> None:
    model = Compressed(
        network().eval(),
        Policy(),
        CompressionSettings(),
        precisions={"layer": Precision(8, 8, scaling)},
    )
    inputs = torch.randn(16, 6, 16, generator=torch.Generator().manual_seed(2))
    compressed = calibrate(model, inputs)
    path = export(compressed, tmp_path / "model.onnx", inputs[:1]).path
    assert check_file(get_target("onnxruntime"), path, compressed) == []


def test_a_layer_that_runs_twice_must_be_integer_twice() -> None:
    half = by_hand(("a#0/MatMul", "QGemm", 1.0), ("a#1/MatMul", "MatMul", 1.0))
    compressed = replace(two_layers(), precisions={"a": _INT8})
    (problem,) = problems_of(half, compressed)
    assert problem.endswith("no integer kernel for a.")


def test_integer_kernels_show_in_openvino(network: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra and not installed here")
    compressed = quantized(network, {"first": _INT8, "deep": _INT8})
    target = get_target("openvino")
    assert check_file(target, written(compressed, tmp_path), compressed) == []
    plain = export(quantized(network, {}), tmp_path / "plain.onnx", images()).path
    (problem,) = check_file(target, plain, compressed)
    assert problem.endswith("no integer kernel for first, deep.")


def typed(op: str, ms: float, before: str, after: str) -> NodeTime:
    return NodeTime(op, op, ms, ((before, (1, 4)),), ((after, (1, 4)),))


_MIXED = Profile(
    (
        typed("QuantizeLinear", 1.0, "float", "uint8"),
        typed("QGemm", 2.0, "uint8", "float"),
        typed("Softmax", 0.25, "float", "float"),
        typed("Sigmoid", 0.25, "float", "float"),
        typed("Pad", 0.5, "float", "float"),
        typed("QLinearAdd", 1.0, "uint8", "uint8"),
    ),
    5.0,
)


def test_the_share_of_conversions_and_what_stands_between_are_told() -> None:
    found = conversions(ORT, _MIXED)
    assert found.share == pytest.approx(1.5 / 5.0)
    assert found.between == {"Softmax": (1, 0.25), "Sigmoid": (1, 0.25)}
    assert found.integer == 1
    (note,) = conversion_notes(found, _MIXED, 0.8)
    assert note == (
        "Conversions take 30% of the kernels' time. Operators on floats: Softmax (1 node, "
        "0.250 ms), Sigmoid (1 node, 0.250 ms)."
    )


@pytest.mark.parametrize("reduced", [False, True])
def test_an_integer_file_that_gains_little_is_explained(reduced: bool) -> None:
    (note,) = conversion_notes(conversions(ORT, _MIXED), _MIXED, 0.81, reduced=reduced)
    assert note.startswith("1 integer kernel, but 0.81 of the uncompressed latency: Conversions")
    assert "QGemm (1 node, 2.000 ms)" in note
    assert ("no 8-bit dot products" in note) is reduced


def test_files_without_integer_layers_need_no_explanation(exported: dict[str, Path]) -> None:
    judged = inspect_file(ORT, exported[".onnx"]).judged(timing(0.95))
    assert judged.notes == judged.problems == []


def test_a_real_integer_file_tells_its_conversions(network: nn.Module, tmp_path: Path) -> None:
    compressed = quantized(network, dict.fromkeys(_LAYERS, _INT8))
    judged = inspect_file(ORT, written(compressed, tmp_path), compressed).judged(timing(0.9))
    assert judged.problems == []
    assert judged.notes[0].startswith(f"{len(_LAYERS)} integer kernels, but 0.90 of the")
    assert 0 < judged.conversions.as_dict()["share"] < 1

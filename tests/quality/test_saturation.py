"""Sums of 8-bit products that do not fit into 16 bits, against exact integer arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.saturation import overflow_problems, settled
from autocompress.targets import get_target
from autocompress.targets.torch_runtime import TorchTarget
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.quantize import simulate, weight_limit

INT8 = LayerPolicy(weight_bits=8, activation_bits=8)


def worst_layer() -> nn.Module:
    """Large inputs and weights of one sign: every pair of products is near its maximum."""
    layer = nn.Linear(64, 8, bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.9, 1.0, 64).repeat(8, 1))
        layer.bias.zero_()
    return nn.Sequential(layer).eval()


def outputs(settings: CompressionSettings, folder: Path, scaling: str) -> tuple[np.ndarray, ...]:
    """Of the file and of the simulation, on the same inputs."""
    policy = LayerPolicy(weight_bits=8, activation_bits=8, activation_scaling=scaling)  # type: ignore[arg-type]  # a text
    made = Compressed(
        worst_layer(), Policy({"0": policy}), settings, {"0": Precision.of(policy, settings)}
    )
    inputs = torch.linspace(0.5, 1.0, 20)[:, None].expand(20, 64).contiguous()
    made = calibrate(made, inputs)
    path = export(made, folder / "worst.onnx", inputs[:1]).path
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        simulated = simulate(made)(inputs).numpy()
    return session.run(None, {"input": inputs.numpy()})[0], simulated


@pytest.mark.parametrize("scaling", ["static", "dynamic"])
def test_the_file_computes_the_quantized_model(tmp_path: Path, scaling: str) -> None:
    """With whatever the target here needs; on a processor that overflows the full range fails."""
    settings = settled(CompressionSettings(), get_target("onnxruntime"))
    got, simulated = outputs(settings, tmp_path, scaling)
    np.testing.assert_allclose(got, simulated, rtol=0.02)


@pytest.mark.parametrize("scaling", ["static", "dynamic"])
def test_the_probe_tells_whether_the_full_range_is_safe(tmp_path: Path, scaling: str) -> None:
    got, simulated = outputs(CompressionSettings(weight_range="full"), tmp_path, scaling)
    wrong = bool(np.abs(got / simulated - 1).max() > 0.02)
    assert wrong == get_target("onnxruntime").products_overflow()


def test_reduced_products_fit_into_16_bits_and_full_ones_do_not() -> None:
    largest = 2**15 - 1
    assert 2 * 255 * weight_limit(8, reduced=True) <= largest
    assert 2 * 255 * weight_limit(8) > largest


def test_a_full_range_file_is_named_only_where_products_overflow() -> None:
    """A recipe from another machine; floats, reduced weights and those of fewer bits are safe."""

    def said(policy: LayerPolicy, weight_range: str, overflows: bool) -> int:
        settings = CompressionSettings(weight_range=weight_range)  # type: ignore[arg-type]  # a text
        precisions = {"0": Precision.of(policy, settings)}
        made = Compressed(worst_layer(), Policy({"0": policy}), settings, precisions)
        return len(overflow_problems(made, overflows))

    low = LayerPolicy(weight_bits=4, activation_bits=8)
    only_weights = LayerPolicy(weight_bits=8)
    assert [said(p, "full", True) for p in (INT8, low, only_weights, LayerPolicy())] == [1, 0, 0, 0]
    assert [said(p, "reduced", True) for p in (INT8, low, only_weights)] == [0, 0, 0]
    assert [said(p, "full", False) for p in (INT8, low)] == [0, 0]


@pytest.mark.parametrize("overflows", [True, False])
def test_a_target_of_any_format_says_whether_products_overflow(overflows: bool) -> None:
    class Own(TorchTarget):
        suffix = ".own"

        def products_overflow(self) -> bool:
            return overflows

    target = Own(TorchTarget.config_model())
    found = settled(CompressionSettings(), target)
    assert found.weight_range == ("reduced" if overflows else "full")
    assert settled(CompressionSettings(), get_target("torch")).weight_range == "full"


def test_what_was_chosen_by_hand_stays() -> None:
    target = get_target("onnxruntime")
    for chosen in ("full", "reduced"):
        settings = CompressionSettings(weight_range=chosen)
        assert settled(settings, target) == settings

"""Training through rounding, and what cannot be quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_networks import data, example
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.errors import CalibrationError, ExportError, InputError, PolicyError
from autocompress.exporters.write import export
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.techniques.quantize import trainable, trained

Build = Callable[..., LayerBank]
INT8 = LayerPolicy(weight_bits=8, activation_bits=8)


def everywhere(bank: LayerBank, policy: LayerPolicy) -> Policy:
    return Policy({x.name: policy for x in bank.inventory.layers if x.kind in ("conv", "linear")})


def test_training_through_rounding_reaches_the_float_weights(bank: Build) -> None:
    found = bank("plain")
    made = found.stitch(everywhere(found, LayerPolicy(weight_bits=4, activation_bits=8)))
    module = trainable(made).train()
    before = {n: p.detach().clone() for n, p in made.module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    split = data("plain").train
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(module(split.inputs()), split.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    again = trained(module, made)
    assert set(dict(again.module.named_parameters())) == set(before)
    moved = [n for n, p in again.module.named_parameters() if not torch.equal(p, before[n])]
    assert set(moved) == set(before)
    for name, parameter in made.module.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_training_through_rounding_needs_something_to_round(bank: Build) -> None:
    with pytest.raises(PolicyError, match="quantized layer"):
        trainable(bank("plain").stitch(Policy()))


@pytest.mark.parametrize(
    "inputs",
    [torch.zeros(0, 3, 8, 8), torch.full((4, 3, 8, 8), float("nan")), torch.zeros(4, 5, 8, 8)],
)
def test_bad_calibration_data_is_a_clear_error(bank: Build, inputs: Tensor) -> None:
    found = bank("plain")
    made = found.stitch(everywhere(found, INT8))
    with pytest.raises(CalibrationError):
        calibrate(made, inputs)


def test_static_integers_are_not_exported_without_ranges(bank: Build, tmp_path: Path) -> None:
    made = bank("plain").stitch(everywhere(bank("plain"), INT8))
    with pytest.raises(ExportError, match="calibrate"):
        export(made, tmp_path / "m.onnx", example("plain"))
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_a_clear_error(bank: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.onnx"):
        export(bank("plain").stitch(Policy()), tmp_path / "m.tflite", example("plain"))

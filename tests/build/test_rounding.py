"""Few bits: layers are solved on what the rounded ones before them leave; zeros stay."""

from __future__ import annotations

import math

import pytest
import torch
from small_networks import data, example, make

from autocompress.build import rounding
from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate


def _compressed(name: str, how: str, **layer: object) -> Compressed:
    model, settings = make(name), CompressionSettings.model_validate({"weight_rounding": how})
    inventory = take_inventory(model, example(name))
    bank = LayerBank.build(model, inventory, data(name, 256).train, settings)
    policy = LayerPolicy.from_dict({"weight_bits": 3, **layer})
    return bank.stitch(Policy({spec.name: policy for spec in inventory.layers}))


def _error(name: str, made: Compressed) -> float:
    inputs = data(name, 256).test.inputs()
    with torch.no_grad():
        return float((simulate(made)(inputs) - make(name)(inputs)).square().mean())


def test_solved_in_order_outputs_come_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is solved are layers, so that a network may gain nothing; it must not lose."""
    gains = []
    for name in ("plain", "residual", "concat", "unet", "tokens"):
        inputs = data(name, 256).train.inputs()
        with monkeypatch.context() as patch:
            made = calibrate(_compressed(name, "auto"), inputs)
            patch.setattr(rounding, "_FINE", 0)  # every layer on float inputs
            apart = calibrate(_compressed(name, "gptq"), inputs)
            nearest = calibrate(_compressed(name, "nearest"), inputs)
        gains.append(_error(name, made) / _error(name, apart))
        assert gains[-1] < 1.02, name
        assert _error(name, made) < _error(name, nearest), name
    assert sum(map(math.log, gains)) / len(gains) < math.log(0.9), gains


def test_zeros_of_sparse_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for fine in (8, 0):
        monkeypatch.setattr(rounding, "_FINE", fine)
        small = _compressed("residual", "gptq", sparsity=0.5)
        before = {n: p == 0 for n, p in small.module.named_parameters() if p.dim() > 1}
        made = calibrate(small, data("residual", 256).train.inputs())
        assert made.folded is not None
        for name, zeros in before.items():
            assert (made.folded.get_parameter(name)[zeros] == 0).all(), name


def test_eight_bits_are_rounded_to_nearest_unless_asked() -> None:
    inputs = data("plain", 256).train.inputs()
    found = [
        calibrate(_compressed("plain", how, weight_bits=8), inputs).folded
        for how in ("auto", "nearest")
    ]
    assert found[0] is not None
    assert found[1] is not None
    for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True):
        assert torch.equal(a, b)

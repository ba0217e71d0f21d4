"""Few bits: layers are solved on what the rounded ones before them leave; zeros stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_networks import data, example, make
from torch import nn

from autocompress.build import rounding
from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.build.lockstep import Lockstep
from autocompress.build.rounding import compensate
from autocompress.errors import UnsupportedModel
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Compressed, Precision
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


def test_a_way_that_changes_midway_leaves_no_half_done_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounded weights may send samples elsewhere: all layers are then rounded as from the start."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 5)
    )
    names, inputs = ("0", "2", "4"), torch.randn(64, 8)
    compressed = Compressed(
        model.eval(),
        Policy(),
        CompressionSettings(),
        precisions=dict.fromkeys(names, Precision(3, 8)),
    )
    plain, states = Lockstep.layers, []

    def layers(self: Lockstep, after: int) -> Iterator[Any]:
        for number, found in enumerate(plain(self)):
            if number == after:
                raise UnsupportedModel("another way")
            yield found

    for after in (0, 2):
        monkeypatch.setattr(Lockstep, "layers", lambda self, after=after: layers(self, after))
        folded = copy.deepcopy(model)
        assert compensate(folded, compressed, inputs) == set()
        states.append(folded.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


class Routed(nn.Module):
    """Samples are sent to layers by what an earlier layer says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Linear(8, 16), nn.Linear(16, 5)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        chosen, out = x[:, :4].argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            out = out.index_add(0, rows, expert(x[rows]))
        return self.last(out.relu())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_layers_that_get_other_samples_once_rounded_are_rounded_all_the_same(bits: int) -> None:
    torch.manual_seed(0)
    model, inputs = Routed().eval(), torch.randn(256, 8)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    bitten = dict.fromkeys(names, Precision(bits, 8))
    compressed = Compressed(model, Policy(), CompressionSettings(), precisions=bitten)
    folded = copy.deepcopy(model)
    compensate(folded, compressed, inputs)
    for name in names:
        rows = folded.get_submodule(name).weight
        assert all(len(row.unique()) <= 2**bits - 1 for row in rows)

"""Layers whose inputs or weights are all zero: there is nothing to solve, and nothing breaks."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.errors import PolicyError
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings
from autocompress.results.trial import SEARCH, Phase
from autocompress.task.data import Data, Split


class Chain(nn.Module):
    """Three linear layers beside an input that goes around them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x))))) + x[:, :3]


def _dead(model: Chain) -> None:
    model.a.bias.fill_(-100.0)  # its ReLU never opens


def _silent_head(model: Chain) -> None:
    model.c.weight.zero_()


def _all_zero(model: Chain) -> None:
    model.b.weight.zero_()
    model.b.bias.zero_()


@pytest.mark.parametrize("silence", [_dead, _silent_head, _all_zero])
@pytest.mark.parametrize(
    "layers",
    [
        {"a": LayerPolicy(prune_ratio=0.5)},
        {"b": LayerPolicy(prune_ratio=0.5)},
        {"b": LayerPolicy(rank_ratio=0.5)},
        {"c": LayerPolicy(rank_ratio=0.5)},
        {"b": LayerPolicy(sparsity=0.5), "a": LayerPolicy(prune_ratio=0.5)},
        {"b": LayerPolicy(weight_bits=4, activation_bits=8)},
        {"a": LayerPolicy(prune_ratio=0.25, weight_bits=3), "c": LayerPolicy(weight_bits=3)},
    ],
)
@pytest.mark.parametrize("phase", [SEARCH, Phase("recover", 0.0, 1)])
def test_what_says_nothing_costs_nothing(
    silence: Callable[[Chain], None], layers: dict[str, LayerPolicy], phase: Phase
) -> None:
    torch.manual_seed(0)
    model, inputs = Chain().eval(), torch.randn(96, 8)
    with torch.no_grad():
        silence(model)
    splits = [Split(inputs, torch.arange(96) % 3) for _ in range(3)]
    own, inventory = Data(*splits, classes=3), take_inventory(model, inputs[:1])
    settings = CompressionSettings(finish="sequential")
    bank = LayerBank.build(model, inventory, own.train, settings)
    parts = Pipeline(model, own, inventory, bank, settings, Schedule(device="cpu"))
    built = parts.build(Policy(layers), phase)
    with torch.no_grad():
        found, wanted = built.module(inputs), model(inputs)
    assert torch.isfinite(found).all()
    if silence is not _silent_head:
        return
    # nothing is added to the input, whatever is done to the layers before the silent head
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def _half_dead(how: str, wide: int) -> tuple[nn.Sequential, set[int]]:
    """Channels of which nothing reaches the outputs, between live ones that say much the same."""
    torch.manual_seed(wide)
    model = nn.Sequential(nn.Linear(2, wide), nn.ReLU(), nn.Linear(wide, 3)).eval()
    dead = torch.randperm(wide)[: wide // 2]
    with torch.no_grad():
        model[0].bias.add_(6.0)  # no ReLU closes: all are sums of two inputs and a constant
        if how == "no reader":
            model[2].weight[:, dead] = 0
        else:
            model[0].weight[dead] = 0
            model[0].bias[dead] = 2.0 if how == "constant" else 0.0
    return model, set(dead.tolist())


@pytest.mark.parametrize("wide", [8, 64, 1400])
@pytest.mark.parametrize("how", ["zero", "constant", "no reader"])
def test_dead_channels_go_before_all_live_ones(how: str, wide: int) -> None:
    model, dead = _half_dead(how, wide)
    inputs = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    inventory = take_inventory(model, inputs[:2])
    bank = LayerBank.build(model, inventory, split, CompressionSettings())
    assert set(bank.orders["0"][: wide // 2]) == dead


def test_a_refusal_says_what_to_write() -> None:
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x))

    model, inputs = Stepped().eval(), torch.randn(8, 4)
    split = Split(inputs, torch.zeros(8, dtype=torch.int64))
    bank = LayerBank.build(model, take_inventory(model, inputs), split, CompressionSettings())
    for own, remedy in (
        (LayerPolicy(weight_bits=8), "`weight_bits: 32`"),
        (
            LayerPolicy(weight_bits=8, activation_bits=8),
            "`weight_bits: 32` and `activation_bits: 32`",
        ),
        (LayerPolicy(rank_ratio=0.5), "`rank_ratio: null`"),
    ):
        with pytest.raises(PolicyError, match=f"{re.escape(f'. Use {remedy} there.')}$"):
            bank.stitch(Policy({"cell": own}))

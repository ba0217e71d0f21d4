"""Layers whose inputs or weights are all zero: there is nothing to solve, and nothing breaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
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

"""Random networks, cut at random: as the masked ones, or left alone with a reason.

For each kind of block so many networks have one, among others; together they are 200 and more.
What is left alone is counted as well: leaving everything alone would agree with anything.
"""

from __future__ import annotations

import random

import pytest
import torch
from masking import drawn, same_as_masked
from random_networks import KINDS, SIZE, RandomNetwork
from small_networks import enliven
from torch import nn

from autocompress.model.groups import SlicingPlan, channel_groups
from autocompress.model.prepare import prepare

EACH = 12
"""Networks for each kind."""
FREE, TABLES = 0.7, 0.5
"""Share of the layers before the last one that can be cut, over all networks of a kind; of those
with tables beside the stream."""
MAKERS = (nn.Linear, nn.modules.conv._ConvNd, nn.LSTM, nn.GRU, nn.Embedding, nn.MultiheadAttention)


def network(kind: str, number: int) -> nn.Module:
    """With a block of the kind, among none to three others."""
    draw = random.Random(f"{kind} {number}")
    kinds = [draw.choice(sorted(KINDS)) for _ in range(draw.randrange(4))]
    kinds.insert(draw.randrange(len(kinds) + 1), kind)
    torch.manual_seed(draw.randrange(10**6))
    made = enliven(RandomNetwork(kinds, draw.randrange(10**6), draw.random() < 0.5))
    return prepare(made).model


def free(model: nn.Module, plan: SlicingPlan) -> tuple[int, int]:
    """Layers that can be cut, and all of them but the last."""
    layers = {n for n, m in model.named_modules() if isinstance(m, MAKERS)} - {"head"}
    inside = {n for n in layers if any(n.startswith(f"{other}.") for other in layers)}
    cut = {m.module for own in plan.members.values() for m in own if m.side != "in"}
    return len((layers - inside) & cut), len(layers - inside)


def test_they_are_as_many_as_asked_for() -> None:
    assert EACH * len(KINDS) >= 200


@pytest.mark.parametrize("kind", KINDS)
def test_cut_is_masked_or_left_alone(kind: str) -> None:
    found = []
    for number in range(EACH):
        model = network(kind, number)
        x = torch.randn(3, 3, SIZE, SIZE)
        groups, plan = channel_groups(model, x[:2])
        assert all(plan.skipped.values()), number
        if groups:
            try:
                same_as_masked(model, plan, x, 0.5, number)
            except Exception as error:
                raise AssertionError(f"{kind}, network {number}: {model}") from error
            assert any(drawn(plan, 0.5, number).values()) or len(groups) < 3, number
        found.append(free(model, plan))
    cut, layers = (sum(counts) for counts in zip(*found, strict=True))
    assert cut / layers >= (TABLES if kind == "Places" else FREE), (
        f"{cut} of {layers} layers can be cut"
    )

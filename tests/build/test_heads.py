"""Heads however attention is written: found, ordered by what their removal costs, made up for."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from attentions import ATTENTIONS, WIDTH, block
from masking import same_as_masked
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.model.attention import opened
from autocompress.model.groups import channel_groups
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import ChannelGroup
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Split

RIDGE = 0.01


@cache
def bank_of(name: str) -> tuple[LayerBank, Tensor, ChannelGroup]:
    """A bank, the inputs that it was calibrated on, and the group of the heads."""
    model, inputs = block(name)
    inventory = take_inventory(model, inputs[:2])
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.long))
    bank = LayerBank.build(model, inventory, split, CompressionSettings(ridge=RIDGE))
    (heads,) = (g for g in inventory.channel_groups if g.name.startswith("attention."))
    count = bank.settings.calibrating(inventory.macs, len(inputs))
    return bank, split.sample(count, bank.settings.seed).inputs(), heads


def reader(model: nn.Module) -> nn.Module:
    """The output projection, in an opened model."""
    attention = opened(model).attention
    return attention.inner.out_proj if hasattr(attention, "inner") else attention.project


def contexts(model: nn.Module, inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What the projection reads, a constant beside it, and what it gives; a row for each token."""
    seen: list[Tensor] = []
    whole = opened(model)
    attention = whole.attention
    layer = attention.inner.out_proj if hasattr(attention, "inner") else attention.project
    handle = layer.register_forward_hook(lambda m, args, out: seen.extend((args[0], out)))
    with torch.no_grad():
        whole(inputs)
    handle.remove()
    if isinstance(layer, nn.Conv1d):
        seen = [x.mT for x in seen]
    rows, given = (x.flatten(0, -2).double().numpy() for x in seen)
    return np.concatenate([rows, np.ones((len(rows), 1))], 1), given


def places(bank: LayerBank, heads: ChannelGroup) -> list[list[int]]:
    """Inputs of the projection that go with every unit."""
    (member,) = (
        m
        for m in bank.plan.members[heads.name]
        if m.side == "heads" or (m.side == "in" and m.module.endswith("project"))
    )
    return [[i for c in unit for i in member.index[c]] for unit in bank.plan.units[heads.name]]


def projection(model: nn.Module) -> np.ndarray:
    """Weights of the projection."""
    return reader(model).weight.detach().flatten(1).double().numpy()


def lost(weight: np.ndarray, moments: np.ndarray, gone: list[int]) -> float:
    """Squared error of the best weights on the inputs that are left: a Schur complement."""
    kept = np.setdiff1d(np.arange(len(moments)), gone)
    known = np.linalg.solve(moments[np.ix_(kept, kept)], moments[np.ix_(kept, gone)])
    rest = moments[np.ix_(gone, gone)] - moments[np.ix_(gone, kept)] @ known
    return float(np.trace(weight[:, gone] @ rest @ weight[:, gone].T))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_can_go_and_the_rest_answers_as_if_they_were_silent(name: str) -> None:
    model, inputs = block(name)
    groups, plan = channel_groups(model, inputs[:2])
    (heads,) = (g for g in groups if g.name.startswith("attention."))
    assert len(plan.units[heads.name]) == ATTENTIONS[name][1]
    for seed in range(3):
        same_as_masked(model, plan, inputs[:3], 0.5, seed)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_go_in_the_greedy_order_of_the_projection_s_error(name: str) -> None:
    bank, inputs, heads = bank_of(name)
    rows = contexts(bank.model, inputs)[0][:, :-1]
    moments = rows.T @ rows / len(rows)
    moments += RIDGE * np.trace(moments) / len(moments) * np.eye(len(moments))
    units, of_unit = bank.plan.units[heads.name], places(bank, heads)
    gone: list[int] = []
    order: list[int] = []
    while len(order) < len(units) - 1:
        left = [u for u in range(len(units)) if u not in order]
        costs = [lost(projection(bank.model), moments, gone + of_unit[u]) for u in left]
        order.append(left[int(np.argmin(costs))])
        gone += of_unit[order[-1]]
    wanted = [c for unit in order for c in units[unit]]
    assert bank.orders[heads.name][: -heads.unit] == wanted


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_projection_makes_up_for_heads_by_least_squares(name: str) -> None:
    bank, inputs, heads = bank_of(name)
    half = Policy({p: LayerPolicy(prune_ratio=0.5) for p in heads.producers})
    small = bank.stitch(half).module
    gone = set(bank.gone(half)[heads.name])
    units = zip(bank.plan.units[heads.name], places(bank, heads), strict=True)
    rows, given = contexts(bank.model, inputs)
    kept = np.setdiff1d(np.arange(WIDTH), [i for u, read in units if u[0] in gone for i in read])
    before = projection(bank.model)[:, kept].T
    damping = np.sqrt(RIDGE * (rows[:, :-1] ** 2).mean())
    count = np.sqrt(len(rows))
    # a row for each token, and a row for each weight, which is drawn to where it was
    left = np.concatenate([rows[:, [*kept, WIDTH]] / count, damping * np.eye(len(kept) + 1)[:-1]])
    right = np.concatenate([given / count, damping * before])
    wanted = np.linalg.lstsq(left, right, rcond=None)[0]
    layer = reader(small)
    np.testing.assert_allclose(projection(small), wanted[:-1].T, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(layer.bias.detach().numpy(), wanted[-1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", [n for n in ATTENTIONS if n.startswith("nn.")])
def test_an_opened_attention_is_the_same_one_with_the_same_tensors(name: str) -> None:
    model, inputs = block(name)
    before = copy.deepcopy(model)
    whole = opened(model)
    with torch.no_grad():
        torch.testing.assert_close(whole(inputs), model(inputs), rtol=1e-4, atol=1e-5)
        whole.attention.inner.out_proj.weight.mul_(2)
    assert torch.equal(
        model.attention.inner.out_proj.weight, 2 * before.attention.inner.out_proj.weight
    )
    assert isinstance(model.attention.inner, nn.MultiheadAttention)


@pytest.mark.parametrize("options", [{"kdim": 7, "vdim": 7}, {"add_bias_kv": True}])
def test_an_attention_whose_heads_cannot_be_told_apart_says_why(
    options: dict[str, object],
) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(8, 16)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)
            self.leave = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            query = self.enter(x)
            seen = x[..., : self.attention.kdim] if "kdim" in options else query
            return self.leave(self.attention(query, seen, seen)[0])

    inventory = take_inventory(Odd().eval(), torch.randn(2, 5, 8))
    reasons = {left.group: left.reason for left in inventory.left_alone}
    assert reasons["attention"].startswith("its keys" if "kdim" in options else "it adds keys")

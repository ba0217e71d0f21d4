"""Narrower heads: the best products of their rank, in every attention that allows it."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from attentions import ATTENTIONS, EACH, HEADS, WIDTH, block
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.errors import PolicyError
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import ChannelGroup
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.task.data import Split
from autocompress.techniques.builtin.prune import Prune
from autocompress.techniques.narrow import joint_bases

AS_WIDE = {"grouped queries", "one key for all", "rotary", "normed"}
"""Something stands between projections and product, or heads share a key."""
NARROWER = [name for name in ATTENTIONS if name not in AS_WIDE]


@cache
def bank_of(name: str) -> tuple[LayerBank, Tensor, ChannelGroup]:
    model, inputs = block(name)
    inventory = take_inventory(model, inputs[:2])
    bank = LayerBank.build(model, inventory, training(inputs), CompressionSettings())
    (heads,) = (g for g in inventory.channel_groups if g.name.startswith("attention."))
    return bank, inputs, heads


def training(inputs: Tensor) -> Split:
    return Split(inputs, torch.zeros(len(inputs), dtype=torch.long))


def narrower(group: ChannelGroup, ratio: float) -> Policy:
    own = LayerPolicy(prune_ratio=ratio, heads="narrower")
    return Policy(dict.fromkeys(group.producers, own))


def test_no_product_of_this_rank_comes_nearer() -> None:
    draw = np.random.default_rng(0)
    left, right = draw.normal(size=(7, 4)), draw.normal(size=(4, 9))
    first, second = (x.numpy() for x in joint_bases(torch.tensor(left), torch.tensor(right)))
    singular = np.linalg.svd(left @ right)[1]
    for rank in range(1, 5):
        made = left @ first[:rank].T @ second[:rank] @ right
        np.testing.assert_allclose(
            ((left @ right - made) ** 2).sum(), (singular[rank:] ** 2).sum(), atol=1e-9
        )


@pytest.mark.parametrize("shapes", [((2, 5), (5, 9)), ((7, 5), (5, 3))])
def test_thin_products_lose_nothing_until_their_rank(shapes: tuple[tuple[int, int], ...]) -> None:
    left, right = (torch.randn(s, dtype=torch.float64) for s in shapes)
    rank = min(*shapes[0], *shapes[1])
    first, second = joint_bases(left, right)
    torch.testing.assert_close(left @ first[:rank].T @ second[:rank] @ right, left @ right)


def products(model: nn.Module, head: int) -> tuple[np.ndarray, np.ndarray]:
    """``Wq' Wk`` and ``Wo Wv`` of one head, biases along the last row and column."""
    attention = model.attention
    width = attention.project.in_features // HEADS
    own = slice(head * width, (head + 1) * width)
    query, key, value = (
        torch.cat([layer.weight[own], layer.bias[own, None]], 1).detach().double().numpy()
        for layer in (attention.query, attention.key, attention.value)
    )
    return query.T @ key, attention.project.weight[:, own].detach().double().numpy() @ value


def test_heads_get_the_best_products_under_the_inputs_second_moment() -> None:
    bank, inputs, group = bank_of("two products")
    small = bank.stitch(narrower(group, 0.5)).module
    seen: list[Tensor] = []
    handle = bank.model.attention.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    count = bank.settings.calibrating(bank.inventory.macs, len(inputs))
    with torch.no_grad():
        bank.model(training(inputs).sample(count, bank.settings.seed).inputs(count))
    handle.remove()
    rows = seen[0].flatten(0, 1).double().numpy()
    rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    for head in range(HEADS):
        before, after = products(bank.model, head), products(small, head)
        for number, product in enumerate((lambda m: root @ m @ root, lambda m: m @ root)):
            whole = product(before[number])
            best = (np.linalg.svd(whole)[1][EACH // 2 :] ** 2).sum()
            error = ((whole - product(after[number])) ** 2).sum()
            assert error <= best * (1 + 1e-3) + 1e-6 * (whole**2).sum()


def test_counts_and_cuts_ask_the_technique_which_heads_get_narrower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank, _, group = bank_of.__wrapped__("two products")
    policy = narrower(group, 0.5)
    assert bank.widths(policy) == {group.name: EACH // 2}
    assert bank.gone(policy) == {}
    monkeypatch.setattr(Prune, "narrows", lambda self, group, policy: False)
    bank, _, group = bank_of.__wrapped__("two products")
    assert bank.widths(policy) == {}
    assert len(bank.gone(policy)[group.name]) == group.channels // 2


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_get_narrower_where_nothing_but_a_product_stands_between(name: str) -> None:
    bank, inputs, group = bank_of(name)
    assert (group.narrower > 0) == (name in NARROWER)
    if name in AS_WIDE:
        with pytest.raises(PolicyError, match="nothing but a product"):
            bank.stitch(narrower(group, 0.5))
        return
    for kept in (1, 3, EACH - 1):
        policy = narrower(group, 1 - kept / EACH)
        small = bank.stitch(policy).module
        left = sum(p.numel() for p in small.attention.parameters())
        whole = sum(p.numel() for p in bank.model.attention.parameters())
        extra = sum(p.numel() for p in bank.model.attention.parameters() if p.dim() == 3)
        if name == "relative positions":
            extra += bank.model.attention.attend.table.numel()
        channels = HEADS * (EACH - kept)
        assert whole - left == channels * (4 * WIDTH + 3), extra
        assert small(inputs[:3]).shape == (3, 5)
        cost = policy_cost(bank.inventory, policy, bank.settings)
        full = policy_cost(bank.inventory, Policy(), bank.settings)
        assert full.params - cost.params == channels * (4 * WIDTH + 3)


@pytest.mark.parametrize("name", NARROWER)
@torch.no_grad()
def test_heads_of_low_rank_lose_nothing(name: str) -> None:
    """Scores are scaled as before, biases stay inside, and every size follows."""
    model, inputs = block(name)
    inventory = take_inventory(model, inputs[:2])
    (group,) = (g for g in inventory.channel_groups if g.name.startswith("attention."))
    found = bank_of(name)[0].plan.narrowings[group.name]
    thin = torch.randn(EACH, 3, dtype=torch.float64) @ torch.randn(3, EACH, dtype=torch.float64)
    for head in found.heads:
        head.query.mix(model, thin / EACH)
        head.value.mix(model, thin / EACH)
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.long))
    bank = LayerBank.build(model, inventory, split, CompressionSettings())
    small = bank.stitch(narrower(group, 1 - 3 / EACH)).module
    torch.testing.assert_close(small(inputs), model(inputs), rtol=1e-3, atol=1e-3)
    rough = bank.stitch(narrower(group, 1 - 1 / EACH)).module
    assert not torch.allclose(rough(inputs), model(inputs), rtol=1e-3, atol=1e-3)


def test_a_space_offers_both_and_says_which() -> None:
    bank, _, _group = bank_of("fused")
    rule = {"match": "attention.*", "prune_ratio": [0, 0.5, 0.6], "heads": ["fewer", "narrower"]}
    (choice,) = SpaceConfig.model_validate({"rules": [rule]}).bind(bank.inventory).choices
    assert [(lv["prune_ratio"], lv["heads"]) for lv in choice.levels] == [
        (0, "fewer"),
        (0.5, "fewer"),
        (0.5, "narrower"),
        (0.6, "narrower"),
    ]
    silent = copy.deepcopy(rule)
    del silent["heads"]
    (choice,) = SpaceConfig.model_validate({"rules": [silent]}).bind(bank.inventory).choices
    assert choice.levels == ({"prune_ratio": 0}, {"prune_ratio": 0.5})

"""Exact sparsity, with torch's own pruning as the reference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from autocompress.build.bank import LayerBank
from autocompress.model.cost import policy_cost, stored_bytes
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.techniques.sparsify import magnitude_mask, sparsify, two_four_mask


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.875])
def test_magnitude_is_that_of_torch_and_exact(sparsity: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3)
    mask = magnitude_mask(layer.weight, sparsity)
    assert int((~mask).sum()) == int(288 * sparsity)
    prune.l1_unstructured(layer, "weight", amount=int(288 * sparsity))
    assert torch.equal(mask, layer.weight_mask.bool())


def test_equal_magnitudes_do_not_break_the_count() -> None:
    assert int((~magnitude_mask(torch.ones(7, 3), 0.5)).sum()) == 10


def test_global_threshold_is_that_of_torch() -> None:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(10, 20, bias=False), "b": nn.Linear(20, 30, bias=False)}
    with torch.no_grad():
        layers["b"].weight.mul_(3)
    wanted = {n: nn.Linear(m.in_features, m.out_features, bias=False) for n, m in layers.items()}
    for name, module in wanted.items():
        module.load_state_dict(layers[name].state_dict())
    prune.global_unstructured(
        [(m, "weight") for m in wanted.values()], prune.L1Unstructured, amount=0.6
    )
    sparsify({n: (m, LayerPolicy(sparsity=0.6)) for n, m in layers.items()}, "global")
    for name, module in layers.items():
        assert torch.equal(module.weight, wanted[name].weight), name
    assert sum(int((m.weight == 0).sum()) for m in layers.values()) == 480


def test_each_layer_reaches_its_own_ratio() -> None:
    layers = {"a": (nn.Linear(10, 20), 0.3), "b": (nn.Linear(20, 30), 0.8)}
    sparsify({n: (m, LayerPolicy(sparsity=s)) for n, (m, s) in layers.items()})
    for module, ratio in layers.values():
        assert int((module.weight == 0).sum()) == int(module.weight.numel() * ratio)


@pytest.mark.parametrize("shape", [(5, 8), (3, 4, 3, 3), (2, 7)])
def test_two_of_four_keeps_the_best_pair_by_brute_force(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    flat, mask = weight.abs().flatten(1), two_four_mask(weight).flatten(1)
    whole = flat.shape[1] // 4 * 4
    for values, kept in zip(flat, mask, strict=True):
        for start in range(0, whole, 4):
            four = values[start : start + 4]
            best = max(combinations(range(4), 2), key=lambda pair: float(four[list(pair)].sum()))
            assert tuple(kept[start : start + 4].nonzero().flatten().tolist()) == best
    assert mask[:, whole:].all()


def test_size_counts_the_smaller_of_dense_and_bitmap() -> None:
    # 1000 floats: 4000 bytes dense; half of them and a bitmap: 125 + 2000
    assert stored_bytes(1000, 10, LayerPolicy(sparsity=0.5)) == 2125
    # 8 bits with a scale per channel: 1000 + 40 dense; 10 % sparse does not pay for a bitmap
    assert stored_bytes(1000, 10, LayerPolicy(sparsity=0.1, weight_bits=8)) == 1040
    assert stored_bytes(1000, 10, LayerPolicy(weight_bits=4)) == 540


def test_sparsity_survives_the_pipeline_and_leaves_macs(bank: Callable[..., LayerBank]) -> None:
    found = bank("residual")
    policy = Policy({"conv3": LayerPolicy(prune_ratio=0.5, sparsity=0.75)})
    small = found.stitch(policy).module
    assert int((small.conv3.weight == 0).sum()) == int(small.conv3.weight.numel() * 0.75)
    pruned = Policy({"conv3": LayerPolicy(prune_ratio=0.5)})
    costs = [policy_cost(found.inventory, p, found.settings) for p in (policy, pruned)]
    assert costs[0].macs == costs[1].macs
    assert costs[0].size_bytes < costs[1].size_bytes

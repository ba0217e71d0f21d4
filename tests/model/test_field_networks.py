"""Networks of the kinds that people report: cut is masked, or left alone with a reason."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from field_networks import ALONE, CASES, FOLDED, HEADS, TIED
from masking import same_as_masked
from small_networks import enliven
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.model.cost import policy_cost
from autocompress.model.groups import SlicingPlan, channel_groups
from autocompress.model.inventory import take_inventory
from autocompress.model.shapes import resolver
from autocompress.model.slicing import remove
from autocompress.policy.inventory import ChannelGroup, Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings

MADE = [name for name, (_, _, right) in CASES.items() if right not in (ALONE, FOLDED)]
WIDTHS = {
    "yolo c2f, chunk": {"first.enter.0": 2, "second.enter.0": 2, "first.leave.0": 1},
    "shufflenet": {"stem": 4, "units.0.branch.0": 1, "units.1.branch.0": 1, "last": 1},
    "shuffle between dense": {"first": 4, "second": 1},
    "nn.ChannelShuffle": {"first": 4, "second": 1},
    "group norm": {"first": 4, "second": 4},
    "u-net, grouped transposed": {"enter": 1, "down": 1, "bottom": 2, "rise": 2, "join": 1},
    "generator": {"enter": 16, "rise": 1},
    "vit, fused": {"attention.qkv": 12, "up": 1},
    "vit, separate": {"attention.query": 4, "up": 1},
    "vit, chunked": {"attention.qkv": 12, "up": 1},
    "inner scale": {"first": 1, "second": 1},
    "frozen batch norm": {"first": 1, "second": 1},
    "instance norm, tracked": {"first": 1, "second": 1},
    "volume": {"enter": 1, "down": 1, "rise": 1},
    "tied convolutions": {"stem": 1},
    "tied linears on two streams": {"enter_left": 1, "left": 1},
    "tied embedding and head": {"up": 1},
    **{f"concatenated {o}": {"first": 1, "second": 1} for o in ("xy", "yx", "gy", "xyy", "yxy")},
}
"""Groups with the channels that only go together, as one reads them off the source."""


def network(name: str) -> tuple[nn.Module, Any]:
    make, example, _ = CASES[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old weight norm
        return enliven(make()), example


def found_in(name: str) -> tuple[nn.Module, Any, dict[str, ChannelGroup], SlicingPlan]:
    model, example = network(name)
    groups, plan = channel_groups(model, example)
    return model, example, {g.name: g for g in groups}, plan


@pytest.mark.parametrize("name", MADE)
def test_cut_is_masked_under_random_policies(name: str) -> None:
    model, example, groups, plan = found_in(name)
    assert groups
    for seed, ratio in enumerate((0.25, 0.5, 0.5)):
        small = same_as_masked(model, plan, example, ratio, seed)
    if CASES[name][2] == TIED:
        counts = [len(list(m.parameters())) for m in (model, small)]
        assert counts[0] == counts[1], "a parameter of two layers became two"


@pytest.mark.parametrize("name", WIDTHS)
def test_what_works_is_prunable(name: str) -> None:
    _, _, groups, plan = found_in(name)
    assert {n: g.unit for n, g in groups.items() if n in WIDTHS[name]} == WIDTHS[name]
    reasons = set(plan.skipped.values())
    known = ("these are the model's outputs", "layer_norm", "embed fixes the width")
    assert all(any(k in reason for k in known) for reason in reasons), reasons


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_alone_has_a_reason_and_its_share(name: str) -> None:
    model, example = network(name)
    inventory = take_inventory(model, example)
    prunable = {p for g in inventory.channel_groups for p in g.producers}
    alone = {left.group for left in inventory.left_alone}
    assert all(left.reason for left in inventory.left_alone)
    assert not prunable & alone
    makers = [x for x in inventory.layers if x.kind in ("conv", "linear") and not x.depthwise]
    touched = prunable | {name for g in inventory.channel_groups for name, _ in g.spans}
    covered = sum(x.macs for x in makers if x.name in touched)
    assert covered + sum(left.macs for left in inventory.left_alone) == sum(x.macs for x in makers)


def test_a_weight_that_a_function_reads_as_well_stays() -> None:
    _, _, groups, plan = found_in("transposed decoder")
    assert not groups
    assert plan.skipped["encode"] == "the weight of encode is used outside of it"


@pytest.mark.parametrize("name", [n for n, (_, _, right) in CASES.items() if right == HEADS])
def test_whole_heads_go(name: str) -> None:
    model, example, groups, plan = found_in(name)
    (heads,) = (g for n, g in groups.items() if n.startswith("attention."))
    unit = plan.units[heads.name][1]
    small = copy.deepcopy(model)
    remove(small, plan.removals({heads.name: unit}))
    assert small.attention.project.in_features == 12
    made = [small.get_submodule(p) for p in heads.producers]
    assert sum(layer.out_features for layer in made) == 36
    # one head of four, in a batch of another size
    assert small(example[:3]).shape == (3, 5)


@pytest.mark.parametrize("name", MADE)
def test_shapes_by_formula_are_those_of_the_cut_network(name: str) -> None:
    model, example = network(name)
    inventory = take_inventory(model, example)
    _, plan = channel_groups(model, example)
    settings = CompressionSettings(prune_residual=True)
    draw = random.Random(name)
    for _ in range(3):
        policy = random_policy(inventory, draw)
        kept = resolver(inventory, settings).kept(policy)
        gone = {
            g.name: [c for unit in plan.units[g.name] for c in unit][: g.channels - kept[g.name]]
            for g in inventory.channel_groups
        }
        small = copy.deepcopy(model)
        remove(small, plan.removals(gone))
        for shape in resolver(inventory, settings).layers(policy):
            module = small.get_submodule(shape.layer.name)
            if isinstance(module, nn.Linear):
                assert (shape.inputs, shape.outputs) == (module.in_features, module.out_features)
            elif isinstance(module, nn.modules.conv._ConvNd):
                assert (shape.inputs, shape.outputs) == (module.in_channels, module.out_channels)
        counted = policy_cost(inventory, policy, settings).params
        assert counted == sum(p.numel() for p in small.parameters())


def random_policy(inventory: Inventory, draw: random.Random) -> Policy:
    ratios = {g.name: draw.choice([0, 0.25, 0.5, 0.75]) for g in inventory.channel_groups}
    return Policy(
        {
            p: LayerPolicy(prune_ratio=ratios[g.name])
            for g in inventory.channel_groups
            for p in g.producers
        }
    )


class Between(nn.Module):
    """Some function between two convolutions."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.third, self.between = nn.Conv2d(4, 2, 1), between

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(self.between(torch.relu(self.first(x))))))


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: x * x.shape[1], "answers differently from the masked one"),
        (lambda x: x + torch.ones(1, 8, 1, 1, dtype=x.dtype), "cut, the model does not run"),
        (lambda x: torch.fft.ifft(torch.fft.fft(x)).real, "outside of any layer"),
        (lambda x: x / x.norm(dim=1, keepdim=True), "all of them go into one"),
    ],
)
def test_one_group_that_cannot_be_cut_leaves_the_others(
    between: Callable[[Tensor], Tensor], reason: str
) -> None:
    groups, plan = channel_groups(Between(between).eval(), torch.randn(2, 3, 4, 4))
    assert [g.name for g in groups] == ["second"]
    assert reason in plan.skipped["first"]


@pytest.mark.parametrize("mode", ["circular", "reflect"])
def test_padding_as_a_function_comes_to_an_end(mode: str) -> None:
    model = Between(lambda x: F.pad(x, (1, 1, 1, 1), mode=mode)).eval()
    groups, plan = channel_groups(model, torch.randn(2, 3, 4, 4))
    assert "second" in {g.name for g in groups}
    same_as_masked(model, plan, torch.randn(3, 3, 4, 4), 0.5)


def test_a_model_that_cannot_be_followed_is_still_listed() -> None:
    def strange(x: Tensor) -> Tensor:
        if torch.overrides._get_current_function_mode() is not None:
            raise RuntimeError("not under a mode")
        return x

    model = Between(strange).eval()
    inventory = take_inventory(model, torch.randn(2, 3, 4, 4))
    assert [layer.name for layer in inventory.layers] == ["first", "second", "third"]
    assert not inventory.channel_groups
    assert inventory.cannot_prune.startswith("100 % of the multiply-adds cannot be pruned. all ")
    assert "not under a mode" in inventory.cannot_prune

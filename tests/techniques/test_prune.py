"""Pruned networks against masked ones, and the cost formula against what is left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from masking import silence
from small_networks import IMAGE_NETWORKS, NETWORKS, RECURRENT, example, hook_macs
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.errors import InputError, PolicyError
from autocompress.model.cost import policy_cost
from autocompress.model.slicing import remove
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings

Build = Callable[..., LayerBank]


def masked(bank: LayerBank, gone: Mapping[str, Sequence[int]]) -> nn.Module:
    """The whole network, with the outputs of the channels that go forced to zero.

    Where a norm or a depthwise layer would make something of a zero, its output is zeroed too.
    """
    model = copy.deepcopy(bank.model)

    def zero(places: list[int]) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            output = output.clone()
            index = [slice(None)] * output.dim()
            index[1 if output.dim() == 4 else -1] = places
            output[tuple(index)] = 0
            return output

        return hook

    for group, channels in gone.items():
        for member in bank.plan.members[group]:
            if member.side == "in" or not isinstance(member.side, str):
                continue
            places = [i for c in channels for i in member.index[c]]
            module = model.get_submodule(member.module)
            if isinstance(module, nn.LSTM | nn.GRU):
                silence(module, places)
            elif member.side == "heads":
                with torch.no_grad():
                    module.out_proj.weight[:, places] = 0
            elif list(module.parameters()):
                module.register_forward_hook(zero(places))
    return model


def uniform(bank: LayerBank, ratio: float) -> Policy:
    """One ratio for all groups but those of transposed convolutions, which no policy touches."""
    producers = {p for g in bank.inventory.channel_groups for p in g.producers}
    listed = producers & set(bank.inventory.by_name)
    return Policy({p: LayerPolicy(prune_ratio=ratio) for p in listed})


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_is_masked_output_by_output(bank: Build, name: str, ratio: float) -> None:
    found = bank(name)
    policy = uniform(found, ratio)
    small = found.stitch(policy, solve=False).module
    inputs = example(name, 6, seed=9)
    with torch.no_grad():
        wanted, got = masked(found, found.gone(policy))(inputs), small(inputs)
    assert found.gone(policy)
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in found.model.parameters()
    )
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_each_group_alone_is_masked(bank: Build, name: str) -> None:
    found = bank(name)
    inputs = example(name, 4, seed=9)
    for group in found.inventory.channel_groups:
        policy = Policy({p: LayerPolicy(prune_ratio=0.5) for p in group.producers})
        assert set(found.gone(policy)) == {group.name}
        with torch.no_grad():
            got = found.stitch(policy, solve=False).module(inputs)
            wanted = masked(found, found.gone(policy))(inputs)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_macs_by_formula_are_those_of_the_pruned_model(
    bank: Build, name: str, ratio: float
) -> None:
    found = bank(name)
    policy = uniform(found, ratio)
    small = found.stitch(policy, solve=False).module
    cost = policy_cost(found.inventory, policy, found.settings)
    assert cost.macs == sum(hook_macs(small, example(name)).values())


@pytest.mark.parametrize("name", NETWORKS)
def test_params_by_formula_are_those_of_the_pruned_model(bank: Build, name: str) -> None:
    found = bank(name)
    policy = uniform(found, 0.5)
    small = found.stitch(policy, solve=False).module
    cost = policy_cost(found.inventory, policy, found.settings)
    assert cost.params == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_step_costs_what_its_smaller_weights_cost(bank: Build, name: str) -> None:
    found = bank(name)
    policy = Policy({"cell": LayerPolicy(prune_ratio=0.5)})
    small = found.stitch(policy).module
    assert small.cell.hidden_size == 4
    weights = [p.numel() for n, p in small.cell.named_parameters() if n.startswith("weight")]
    rest = 5 * 6 * 8 + small.head.weight.numel()  # the embedding of five steps, and the head
    cost = policy_cost(found.inventory, policy, found.settings)
    assert cost.macs == 5 * sum(weights) + rest


def test_widths_are_nested(bank: Build) -> None:
    found = bank("plain")
    gone = [set(found.gone(uniform(found, r))["conv1"]) for r in (0.25, 0.5, 0.75)]
    assert gone[0] < gone[1] < gone[2]


def test_channel_multiple_rounds_what_is_kept(bank: Build) -> None:
    found = bank("residual", CompressionSettings(channel_multiple=4))
    policy = Policy({"conv3": LayerPolicy(prune_ratio=0.4)})
    module = found.stitch(policy).module
    assert module.conv3.out_channels == module.conv4.in_channels == 8


def test_a_residual_stream_stays_unless_asked(bank: Build) -> None:
    found = bank("residual", CompressionSettings())
    with pytest.raises(InputError, match="prune_residual"):
        found.stitch(Policy({p: LayerPolicy(prune_ratio=0.5) for p in ("stem", "conv2")}))


def test_nothing_may_be_left_without_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(PolicyError, match="at least one channel"):
        remove(model, {("0", "out"): [0, 1, 2, 3]})


def test_a_layer_that_the_model_lacks_is_named_with_the_nearest(bank: Build) -> None:
    with pytest.raises(InputError, match="conv1"):
        bank("plain").stitch(Policy({"conv1x": LayerPolicy(prune_ratio=0.5)}))

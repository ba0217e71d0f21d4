"""What is listed, in which order, and what the formula says of it."""

from __future__ import annotations

import pytest
import torch
from small_networks import IMAGE_NETWORKS, NETWORKS, example, hook_macs, make
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import UnsupportedModel
from autocompress.model.cost import count_macs, outside_of_layers, policy_cost
from autocompress.model.fingerprint import fingerprint
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Policy
from autocompress.policy.registry import techniques
from autocompress.policy.settings import CompressionSettings


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_macs_are_those_that_run(name: str) -> None:
    model, inputs = make(name), example(name)
    inventory = take_inventory(model, inputs)
    assert {layer.name: layer.macs for layer in inventory.layers} == hook_macs(model, inputs)


@pytest.mark.parametrize("name", [n for n in IMAGE_NETWORKS if n != "shared"])
def test_macs_are_those_of_fvcore(name: str) -> None:
    model, inputs = make(name), example(name)
    found = count_macs(model, inputs).per_layer
    for layer in take_inventory(model, inputs).layers:
        assert layer.macs == found[layer.name], layer.name


def test_a_layer_that_runs_twice_counts_twice() -> None:
    model, inputs = make("shared"), example("shared")
    (twice,) = [x for x in take_inventory(model, inputs).layers if x.name == "twice"]
    assert twice.macs == 2 * 8 * 8 * 9 * 64
    assert twice.params == 8 * 8 * 9 + 8


@pytest.mark.parametrize("name", NETWORKS)
def test_params_are_those_of_torch(name: str) -> None:
    model, inputs = make(name), example(name)
    cost = policy_cost(take_inventory(model, inputs), Policy(), CompressionSettings())
    assert cost.params == sum(p.numel() for p in model.parameters())


def test_recurrent_macs_count_every_gate_at_every_step() -> None:
    inventory = take_inventory(make("lstm"), example("lstm"))
    assert inventory.layer("cell").macs == 5 * 4 * 8 * (8 + 8)
    inventory = take_inventory(make("gru"), example("gru"))
    assert inventory.layer("cell").macs == 5 * 3 * 8 * (8 + 8)


def test_attention_macs_count_projections_and_both_products() -> None:
    inventory = take_inventory(make("tokens"), example("tokens"))
    attention = inventory.layer("encoder.layers.0.self_attn")
    tokens, width = 7, 8
    assert attention.macs == 4 * tokens * width**2 + 2 * tokens**2 * width


def test_layers_come_in_the_order_in_which_they_run() -> None:
    inventory = take_inventory(make("residual"), example("residual"))
    names = [layer.name for layer in inventory.layers]
    assert names == ["stem", "conv1", "conv2", "project", "conv3", "conv4", "head"]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_inventory_leaves_the_model_as_it_was(name: str) -> None:
    model = make(name).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    take_inventory(model, example(name))
    assert model.training
    assert flags == [p.requires_grad for p in model.parameters()]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(m._forward_hooks for m in model.modules())


def test_fingerprints_tell_weights_from_architecture() -> None:
    one, other = make("plain"), make("plain", seed=1)
    assert fingerprint(one) == fingerprint(make("plain"))
    assert fingerprint(one)[0] == fingerprint(other)[0]
    assert fingerprint(one)[1] != fingerprint(other)[1]
    assert fingerprint(one)[0] != fingerprint(make("residual"))[0]
    other.conv2.stride = (1, 1)
    assert fingerprint(one)[0] != fingerprint(other)[0]


def test_an_input_that_does_not_fit_is_a_clear_error() -> None:
    with pytest.raises(UnsupportedModel, match=r"does not run .*, \(N, 4, 8, 8\) float32: "):
        take_inventory(make("plain"), torch.zeros(2, 4, 8, 8))


def test_a_model_without_layers_is_a_clear_error() -> None:
    with pytest.raises(UnsupportedModel, match="no convolution"):
        take_inventory(nn.Sequential(nn.ReLU()), torch.zeros(2, 4))


class Idle(nn.Module):
    """Two layers run for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3)
        self.idle, self.behind = nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        self.behind(self.idle(x).tanh())
        return self.two(x)


def test_layers_on_which_no_answer_depends_are_left_alone() -> None:
    """No file holds them, so that none could be asked for their integers."""
    model, inputs = Idle().eval(), torch.randn(32, 6)
    found = take_inventory(model, inputs).by_name
    names = [technique.name for technique in techniques()]
    reasons = {n: {found[n].why_not(technique) for technique in names} for n in found}
    assert reasons["one"] == reasons["two"] == {""}
    assert reasons["idle"] == reasons["behind"] == {"", "no answer depends on it"}
    for name in ("idle", "behind"):
        assert not found[name].why_not("prune")
        assert found[name].why_not("quantize")
    data = {"train": (inputs, torch.arange(32) % 3)}
    told = ac.evaluate(model, data, uniform={"prune_ratio": 0.5, "weight_bits": 8})["trial"]
    assert set(told["policy"]["layers"]["one"]) >= {"prune_ratio", "weight_bits"}


class Waves(nn.Module):
    """A layer of complex weights, and a table of them, between real layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.turn = nn.Linear(6, 8), nn.Linear(8, 8, dtype=torch.cfloat)
        self.table = nn.Parameter(torch.randn(8, dtype=torch.cfloat))
        self.two, self.last = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.turn(torch.fft.fft(self.one(x))) * self.table
        return self.last(self.two(torch.fft.ifft(x).real).relu())


def test_complex_weights_stay_complex_where_groups_are_tried() -> None:
    torch.manual_seed(0)
    inventory = take_inventory(Waves().eval(), torch.randn(4, 6))
    assert "two" in [group.name for group in inventory.channel_groups]
    assert all("does not run" not in left.reason for left in inventory.left_alone)
    turn = inventory.layer("turn")
    for technique in ("quantize", "low-rank", "sparse"):
        assert turn.why_not(technique) == "its weights are complex numbers"


class Routed(nn.Module):
    """A table of weights that the model multiplies by itself, beside two layers and a norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.table = nn.Parameter(torch.randn(size, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("ni,oij->noj", self.norm(self.one(x)), self.table).sum(1)
        return self.two(x.relu())


@pytest.mark.parametrize("size", [1, 9])
def test_many_parameters_outside_of_layers_are_named_and_counted(size: int) -> None:
    model, inputs = Routed(size).eval(), torch.randn(4, 6)
    inventory = take_inventory(model, inputs)
    counted = policy_cost(inventory, Policy(), CompressionSettings()).params
    everything = sum(p.numel() for p in model.parameters())
    assert counted == everything
    share = f"{model.table.numel() / everything:.0%}"
    (told,) = outside_of_layers(model, inventory)
    assert told.startswith(f"{share} of the parameters (table) lie outside of layers")


def test_few_parameters_outside_of_layers_need_no_word() -> None:
    model, inputs = Waves().eval(), torch.randn(4, 6)
    assert outside_of_layers(model, take_inventory(model, inputs)) == ()

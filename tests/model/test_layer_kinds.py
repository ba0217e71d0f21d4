"""Every kind of layer is listed, counted and either compressed or left alone with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from kinds import KINDS, fitting, kind
from odd_layers import ODD, odd_inputs, odd_network
from offered import offering
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.model.cost import count_macs, policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.prepare import prepare
from autocompress.policy.inventory import Inventory, LayerSpec, LayerTraits
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.technique import Field, Technique

SETTINGS = CompressionSettings()
SINGLE = ("quantize", "low-rank", "sparse")


def inventory_of(name: str) -> Inventory:
    return take_inventory(kind(name), fitting(name)[:1])


@pytest.mark.parametrize("name", KINDS)
def test_params_are_those_of_torch(name: str) -> None:
    model = kind(name)
    cost = policy_cost(inventory_of(name), Policy(), SETTINGS)
    assert cost.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in KINDS if n.startswith(("transposed", "volume"))])
def test_macs_are_those_of_fvcore(name: str) -> None:
    found = count_macs(kind(name), fitting(name)).per_layer
    inventory = inventory_of(name)
    assert policy_cost(inventory, Policy(), SETTINGS).macs == inventory.macs
    for layer in inventory.layers:
        assert layer.macs == found[layer.name], layer.name


@pytest.mark.parametrize(
    ("name", "listed", "steps", "weights"),
    [
        ("RNNCell", "rnn", 5, 8 * (7 + 8)),
        ("LSTMCell", "lstm", 5, 4 * 8 * (7 + 8)),
        ("GRUCell", "gru", 5, 3 * 8 * (7 + 8)),
        ("rnn", "rnn", 5, 2 * 8 * (7 + 8) + 2 * 8 * (16 + 8)),
        ("projected lstm", "lstm", 5, 32 * (7 + 3) + 3 * 8 + 32 * (3 + 3) + 3 * 8),
    ],
)
def test_recurrent_macs_are_the_closed_form(
    name: str, listed: str, steps: int, weights: int
) -> None:
    layer = inventory_of(name).layer("cell")
    assert (layer.kind, layer.macs) == (listed, steps * weights)
    assert layer.why_not("low-rank")


@pytest.mark.parametrize(
    ("name", "layer", "technique", "reason"),
    [
        ("transposed 2d", "up", "low-rank", "transposed"),
        ("RNNCell", "cell", "quantize", "the model's own code"),
        ("LSTMCell", "cell", "sparse", "the model's own code"),
        ("rnn", "cell", "quantize", "RNN"),
    ],
)
def test_what_is_left_alone_says_why(name: str, layer: str, technique: str, reason: str) -> None:
    assert reason in inventory_of(name).layer(layer).why_not(technique)


def test_integers_are_offered_where_runtimes_have_them() -> None:
    transposed, words = inventory_of("transposed 2d"), inventory_of("words")
    assert {n.name for n in transposed.layers if n.integer} == {"down", "last"}
    assert all(not n.why_not("quantize") for n in transposed.layers)
    assert not words.layer("table").integer
    half = Policy({"table": LayerPolicy(weight_bits=8)})
    whole, small = (policy_cost(words, p, SETTINGS).size_bytes for p in (Policy(), half))
    assert whole - small == 300 * 16 * 3 - 300 * 4  # a scale for every row


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("same", {}),
        ("static", {}),
        ("standardized", {}),
        (
            "standardized_same",
            dict.fromkeys(("quantize", "low-rank", "sparse"), "computes its weight"),
        ),
        ("with_norm", {"re-solve": "changes its outputs"}),
        ("adapter", dict.fromkeys(("quantize", "low-rank", "sparse"), "more than multiply")),
        ("renamed", {}),
        ("conv1d", {}),
    ],
)
def test_subclasses_are_left_alone_only_where_they_must(name: str, alone: dict[str, str]) -> None:
    prepared = prepare(odd_network(name)).model
    inventory = take_inventory(prepared, odd_inputs(name)[:1])
    layer = inventory.layer("odd")
    for technique in (*SINGLE, "re-solve"):
        assert alone.get(technique, "") in layer.why_not(technique)
        assert bool(layer.why_not(technique)) == (technique in alone) or technique == "re-solve"
    assert set(ODD) >= {name}


class TransposedDecoder(nn.Module):
    """Reads its encoder's weight once more, transposed, as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.head = nn.Linear(12, 8), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        zeros = self.head.weight.new_zeros(12)  # asks for a kind of tensor, and uses no weight
        return self.head(F.linear(F.relu(self.enc(x)), self.enc.weight.t(), zeros))


def test_a_weight_that_is_used_elsewhere_is_left_alone() -> None:
    inventory = take_inventory(TransposedDecoder(), torch.randn(2, 12))
    encoder, head = inventory.layer("enc"), inventory.layer("head")
    for technique in ("quantize", "low-rank", "sparse", "re-solve"):
        assert "outside of the layer (t)" in encoder.why_not(technique)
    assert head.left_alone == ()


def test_a_layer_with_hooks_is_not_divided() -> None:
    """Two layers in its place would run them twice, or on half of what it computes."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    words = nn.Sequential(nn.Embedding(40, 12), nn.Flatten(), nn.Linear(60, 12), nn.Linear(12, 3))
    model[0].register_forward_hook(lambda module, args, out: 1.5 * out + 0.2)
    model[1].register_forward_pre_hook(lambda module, args: (args[0] / 2 + 0.1,))
    words[0].register_forward_hook(lambda module, args, out: out.tanh())
    found = take_inventory(model, torch.randn(2, 3, 8, 8))
    ids = torch.arange(10).view(2, 5)
    layers = [*found.layers, *take_inventory(words, ids).layers]
    divided = ["hooks" not in layer.why_not("low-rank") for layer in layers]
    assert divided == [False, False, True, False, True, True]
    assert not any("hooks" in layer.why_not("quantize") for layer in layers)


class OnlyWide(Technique):
    """Of some package: for wide layers."""

    name = "only-wide"
    fields: ClassVar[tuple[Field, ...]] = (Field("wide", 0, values=(0, 1)),)
    knob = "wide"
    of_first = True

    def left_alone(self, layer: LayerSpec, traits: LayerTraits) -> str:
        """Narrow layers."""
        narrow = f"a {traits.class_name} of {layer.out_channels} is narrow"
        return super().left_alone(layer, traits) or narrow * (layer.out_channels < 8)

    def left_alone_together(self, layers: Sequence[LayerSpec]) -> str:
        """All that are shared."""
        return f"{len(layers)} layers share it"


def test_a_package_says_itself_which_layers_it_leaves_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 8))
    shared[1].weight = shared[0].weight
    with offering(monkeypatch) as found:
        found(("Wide", OnlyWide))
        decoder = take_inventory(TransposedDecoder(), torch.randn(2, 12))
        first, other, last = take_inventory(shared, torch.randn(2, 9)).layers
    assert "outside of the layer" in decoder.layer("enc").why_not("only-wide")
    assert decoder.layer("head").why_not("only-wide") == "a Linear of 5 is narrow"
    assert first.why_not("only-wide") == "2 layers share it"
    assert (other.why_not("only-wide"), last.why_not("only-wide")) == ("", "")

"""Techniques of packages at the stage of the channels: what they leave out is cut by the bank."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from masking import blind
from offered import Narrow, offering
from small_networks import data, example, make

from autocompress.build.bank import LayerBank
from autocompress.errors import PolicyError
from autocompress.model.inventory import take_inventory
from autocompress.model.shapes import resolver
from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import techniques
from autocompress.policy.settings import CompressionSettings


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with offering(monkeypatch) as offer:
        offer(("Narrow", Narrow))
        yield


def test_channels_are_cut_once_whichever_techniques_leave_them_out(narrow: None) -> None:
    model, inputs = make("residual"), example("residual")
    inventory = take_inventory(model, inputs)
    settings = CompressionSettings(calibration_images=16)
    bank = LayerBank.build(model, inventory, data("residual").train, settings)
    free = [group for group in inventory.channel_groups if not group.residual]
    assert free
    asked = ({"most_channels": 4}, {"prune_ratio": 0.5}, {"most_channels": 4, "prune_ratio": 0.5})
    for values in asked:
        own = LayerPolicy.from_dict(values)
        policy = Policy({name: own for group in free for name in group.producers})
        gone = bank.gone(policy)
        for group in free:
            fewest = min(values.get("most_channels", group.channels), group.channels)
            if "prune_ratio" in values:
                fewest = min(fewest, math.floor(group.channels / 2 + 0.5))
            assert group.channels - len(gone[group.name]) == fewest
        small = bank.stitch(policy, solve=False).module
        with torch.no_grad():
            torch.testing.assert_close(
                small(inputs),
                blind(bank.model, bank.plan.removals(gone))(inputs),
                rtol=1e-4,
                atol=1e-5,
            )


def test_a_number_of_channels_that_cannot_be_cut_is_refused(narrow: None) -> None:
    group = ChannelGroup("heads", ("heads",), ("head",), 32, unit=8)
    layers = (
        LayerSpec("heads", "linear", 3, 32, out_group="heads"),
        LayerSpec("head", "linear", 32, 5),
    )
    found = resolver(Inventory(layers, (group,), ((3,),), "a", "w"), CompressionSettings())
    with pytest.raises(PolicyError, match=r"'narrow' keeps 12 of the 32 .* in steps of 8"):
        found.kept(Policy({"heads": LayerPolicy.from_dict({"most_channels": 12})}))


def test_a_layer_whose_channels_stay_is_told_so_by_any_technique(narrow: None) -> None:
    inventory = take_inventory(make("plain"), example("plain"))
    last = inventory.layers[-1]
    policy = LayerPolicy.from_dict({"most_channels": 4})
    (other,) = (t for t in techniques() if t.name == "narrow")
    (prune,) = (t for t in techniques() if t.name == "prune")
    assert other.why_not(last, policy, inventory)
    assert other.why_not(last, policy, inventory) == prune.why_not(last, policy, inventory)

"""The order in which channels go, by a function of the user."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from small_networks import data, example, make
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.errors import InputError
from autocompress.model.inventory import take_inventory
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Split


def by_sum(model: nn.Module, producers: Sequence[str], channels: int, sample: Split) -> Tensor:
    """The channels with the largest sum of weights stay."""
    assert len(sample) > 0
    weights = (model.get_parameter(f"{name}.weight") for name in producers)
    return torch.stack([weight.flatten(1).sum(1) for weight in weights]).sum(0)


def too_few(model: nn.Module, producers: Sequence[str], channels: int, sample: Split) -> Tensor:
    return torch.ones(channels - 1)


def bank_of(function: object) -> LayerBank:
    model = make("residual")
    settings = CompressionSettings.model_validate({"importance": function, "prune_residual": True})
    inventory = take_inventory(model, example("residual"))
    return LayerBank.build(model, inventory, data("residual").train, settings)


def test_the_lowest_score_goes_first() -> None:
    bank = bank_of(by_sum)
    group = bank.inventory.groups_by_name["conv3"]
    scores = by_sum(bank.model, group.producers, group.channels, data("residual").train)
    assert bank.orders["conv3"] == torch.argsort(scores).tolist()


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"must give .* finite numbers"):
        bank_of(too_few)

"""Banks of the small networks, built once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from small_networks import data, example, make

from autocompress.compress.bank import LayerBank
from autocompress.model.inventory import take_inventory
from autocompress.policy.settings import CompressionSettings


@pytest.fixture(scope="session")
def bank() -> Callable[..., LayerBank]:
    """From a network's name and settings to its bank; nothing in it may be changed."""

    @cache
    def build(name: str, settings: CompressionSettings | None = None) -> LayerBank:
        model = make(name)
        inventory = take_inventory(model, example(name))
        chosen = settings or CompressionSettings(prune_residual=True)
        return LayerBank.build(model, inventory, data(name).train, chosen)

    return build

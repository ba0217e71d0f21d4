"""The small network, exported once, that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
from known_times import RULES
from measured_network import images, quantized, small
from torch import nn

from autocompress.estimate.latency_features import LayerPlan
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import Inventory
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space
from autocompress.policy.space_config import SpaceConfig


@pytest.fixture(autouse=True)
def own_lock(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests must neither wait for other work on this machine nor keep it waiting."""
    folder = tmp_path_factory.getbasetemp() / "lock"
    monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(folder))


@pytest.fixture(scope="session")
def network() -> nn.Module:
    return small()


@pytest.fixture(scope="session")
def inventory(network: nn.Module) -> Inventory:
    return take_inventory(network, images())


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, network: nn.Module) -> dict[str, Path]:
    """The float network as a file of every format that a runtime opens."""
    folder = tmp_path_factory.mktemp("exported")
    plain = quantized(network, {})
    return {
        suffix: export(plain, folder / f"small{suffix}", images()).path
        for suffix in (".onnx", ".pt2")
    }


@pytest.fixture(scope="session")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with many more channels."""
    wide = quantized(small(64), {})
    return export(wide, tmp_path_factory.mktemp("wide") / "wide.onnx", images()).path


@pytest.fixture(scope="session")
def space(inventory: Inventory) -> Space:
    """Of the network, with the levels of ``known_times``."""
    return SpaceConfig.read({"rules": [RULES]}).bind(inventory)


@pytest.fixture(scope="session")
def plan(inventory: Inventory) -> LayerPlan:
    return LayerPlan(inventory, CompressionSettings())

"""Fixtures that several rooms share. Real data and weights come from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import nn

    from autocompress.build.bank import LayerBank
    from autocompress.policy.settings import CompressionSettings
    from autocompress.task.data import Data
    from autocompress.track.folder import RunFolder


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: the shared data and weights are not at hand")
    return Path(value)


@pytest.fixture(scope="session")
def cifar_data() -> Data:
    """CIFAR-10 in its three splits."""
    from autocompress.workloads.data import image_folder

    return image_folder(str(_folder("AUTOCOMPRESS_DATA") / "cifar10"))


@pytest.fixture(scope="session")
def resnet20_trained() -> nn.Module:
    """The shared ResNet-20; tests must not change it."""
    from autocompress.workloads.models import load_weights, resnet20

    return load_weights(
        resnet20(), str(_folder("AUTOCOMPRESS_WEIGHTS") / "resnet20_cifar10.safetensors")
    )


@pytest.fixture(scope="session")
def bank() -> Callable[..., LayerBank]:
    """From a small network's name and settings to its bank; nothing in it may be changed."""
    from small_networks import data, example, make

    from autocompress.build.bank import LayerBank
    from autocompress.model.inventory import take_inventory
    from autocompress.policy.settings import CompressionSettings
    from autocompress.quality.saturation import settled
    from autocompress.targets import get_target

    @cache
    def build(name: str, settings: CompressionSettings | None = None) -> LayerBank:
        model = make(name)
        inventory = take_inventory(model, example(name))
        chosen = settings or CompressionSettings(prune_residual=True)
        chosen = settled(chosen, get_target("onnxruntime"))
        return LayerBank.build(model, inventory, data(name).train, chosen)

    return build


@pytest.fixture
def make_run() -> Callable[..., RunFolder]:
    """Writes a finished run into a folder; see ``handmade_run``."""
    import handmade_run

    return handmade_run.make_run


@pytest.fixture(scope="session", autouse=True)
def _nobody_waits_for_a_quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A busy machine would make every small study wait, those in processes of their own too.

    Nor does one process of tests pause while another one times: a fourth of the time of all tests,
    for latencies that none of them looks at closely. Both kinds of waiting have tests of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMPRESS_QUIET_WAIT_S", "0")
        patch.setenv("AUTOCOMPRESS_LOCK_DIR", str(tmp_path_factory.mktemp("lock")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole studies first, so that several processes end at about the same time."""

    def short(item: pytest.Item) -> bool:
        return not any(mark.args and mark.args[0] >= 600 for mark in item.iter_markers("timeout"))

    items.sort(key=short)


# a busy machine may take its time over an example; how long says nothing about right or wrong
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

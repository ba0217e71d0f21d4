"""The small network, exported once, that the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import LoopbackDevice, loopback_device
from measured_network import images, quantized, small

from autocompress.exporters.write import export
from autocompress.targets.onnx_runtime import device_at


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float network as a file of every format that a built-in runtime opens."""
    folder = tmp_path_factory.mktemp("exported")
    plain = quantized(small(), {})
    return {
        suffix: export(plain, folder / f"small{suffix}", images()).path
        for suffix in (".onnx", ".pt2")
    }


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackDevice]:
    with loopback_device(tmp_path_factory.mktemp("board") / "ssh") as found:
        yield found


@pytest.fixture
def own_keys(board: LoopbackDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``ssh`` gets to the board with the keys of the test's, over a new connection."""
    monkeypatch.setenv("AUTOCOMPRESS_SSH", board.ssh)
    device_at.cache_clear()
    yield
    device_at.cache_clear()

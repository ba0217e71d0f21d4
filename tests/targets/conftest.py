"""The small network, exported once, that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
from measured_network import images, quantized, small

from autocompress.exporters.write import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float network as a file of every format that a built-in runtime opens."""
    folder = tmp_path_factory.mktemp("exported")
    plain = quantized(small(), {})
    return {
        suffix: export(plain, folder / f"small{suffix}", images()).path
        for suffix in (".onnx", ".pt2")
    }

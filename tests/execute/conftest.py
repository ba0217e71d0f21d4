"""The modules that workers import by name, and one Ray for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_BY_NAME = [str(_HERE.parent / "controller"), str(_HERE.parent / "support")]
sys.path += [folder for folder in _BY_NAME if folder not in sys.path]


@pytest.fixture(scope="session")
def ray_offline() -> Iterator[None]:
    """Executors find it running and leave it running."""
    import ray

    path = os.pathsep.join([*_BY_NAME, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()
    assert not ray.is_initialized()

"""Studies in processes of their own, with one cache for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baseline, bank and latency table, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_prepared(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "cache").symlink_to(prepared)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A study that a failed test has started must not go on beside the others."""
    yield
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if {"autocompress", "search"} <= {*child.cmdline()}:
                child.kill()

"""The small network, exported once, that the tests of this room share."""

import pytest
from measuring import exported, inventory, network, own_lock, wide_file

__all__ = ["exported", "inventory", "network", "own_lock", "wide_file"]


@pytest.fixture(autouse=True)
def _files_are_timed_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rooms' tests time theirs for a moment only."""
    monkeypatch.delenv("AUTOCOMPRESS_TIMING_S")

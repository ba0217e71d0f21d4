"""Other processes that share this one's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lock_processes import Other


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Other]]:
    monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(tmp_path / "lock"))
    made: list[Other] = []

    def start_one(code: str) -> Other:
        made.append(Other(code))
        assert made[-1].reaches("waiting")
        return made[-1]

    yield start_one
    for other in made:
        other.kill()

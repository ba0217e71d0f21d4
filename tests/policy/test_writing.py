"""Files that are replaced whole, or left as they were."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from autocompress.policy.writing import replacing, without_password


def _write(path: Path, parts: Iterable[Any]) -> None:
    with path.open("w") as file:
        for part in parts:
            file.write(part)


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    with replacing(path) as partial:
        partial.write_text("one")
        assert partial.suffix == ".json"
        assert not path.exists()
    with pytest.raises(TypeError), replacing(path) as partial:
        _write(partial, ["half ", 2])
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:secret@host:5432/x", "postgresql+psycopg://me@host:5432/x"),
        ("postgresql://me:sec@ret@host/x", "postgresql://me@host/x"),
        ("mysql://host/x?user=me&password=secret", "mysql://host/x?user=me&password="),
        ("http://:secret@host", "http://@host"),
        ("sqlite:////a:b/c@d.db", "sqlite:////a:b/c@d.db"),
        ("http://host:5000/a", "http://host:5000/a"),
        ("journal:/a/b@c.log", "journal:/a/b@c.log"),
        ("/a/b:c@d", "/a/b:c@d"),
    ],
)
def test_a_password_is_taken_out_of_a_url_and_nothing_else(url: str, shown: str) -> None:
    assert without_password(url) == shown

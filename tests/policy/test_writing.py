"""Files that are replaced whole, or left as they were."""

from __future__ import annotations

import subprocess
import sys
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


_FULL = """
import errno, resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from autocompress.policy.writing import replacing
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
tensors = {"weight": torch.zeros(100_000)}
writers = {
    "torch": lambda path: torch.save(tensors, path),
    "safetensors": lambda path: save_file(tensors, path),
    "bytes": lambda path: path.write_bytes(bytes(400_000)),
}
path = Path(sys.argv[1]) / "file"
try:
    with replacing(path) as partial:
        writers[sys.argv[2]](partial)
except OSError as error:
    assert error.errno == errno.EFBIG, error
    assert "file" in error.filename, error
    print("told")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
@pytest.mark.parametrize("writer", ["torch", "safetensors", "bytes"])
def test_a_full_disk_is_called_that_whoever_writes(writer: str, tmp_path: Path) -> None:
    """A limit of the system stands for the end of a disk."""
    command = [sys.executable, "-c", _FULL, str(tmp_path), writer]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "told", found.stderr
    assert list(tmp_path.iterdir()) == []


def test_errors_that_are_no_disks_stay_what_they_are(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"), replacing(tmp_path / "x"):
        fail()
    assert list(tmp_path.iterdir()) == []

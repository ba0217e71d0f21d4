"""Temporary folders: gone at the end, and gone soon after a process was killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.machine import scratch
from autocompress.machine.scratch import make_scratch, scratch_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept there")

_HOLDING = """
import sys
from autocompress.machine.scratch import scratch_folder
with scratch_folder("test") as folder:
    (folder / "weights").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that holds a folder."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.folder = Path(self.process.stdout.readline().strip())

    def end(self, *, kill: bool) -> None:
        if kill:
            self.process.kill()
        self.process.communicate("\n", timeout=30)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def _sweep() -> None:
    scratch._sweep.cache_clear()
    with scratch_folder("sweeper"):
        pass


def test_a_folder_is_gone_at_the_end(place: Path) -> None:
    with scratch_folder("test") as folder:
        assert folder.parent == place
        (folder / "weights").touch()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(place: Path) -> None:
    killed, alive, ended = Holder(), Holder(), Holder()
    ended.end(kill=False)
    killed.end(kill=True)
    assert set(place.iterdir()) == {killed.folder, alive.folder}
    _sweep()
    assert list(place.iterdir()) == [alive.folder]
    assert (alive.folder / "weights").exists()
    alive.end(kill=False)


def test_nothing_else_is_touched(place: Path) -> None:
    """Links, files, folders of other machines, and names that only look alike."""
    holder = Holder()
    holder.end(kill=True)
    name, dead = holder.folder.name, str(holder.process.pid)
    precious = place / "precious"
    precious.mkdir()
    (precious / "data").touch()
    link = place / f"{name}link"
    link.symlink_to(precious)
    others = [
        name.replace(scratch._machine(), "0" * 8),
        name.replace("-test-", "-test-own-"),
        name.replace(f"-{dead}-", f"-{dead}x-"),
        name.replace(f"-{dead}-", f"-{'9' * 20}-"),
        f"mine-{name}",
    ]
    for other in others:
        (place / other).mkdir()
    (place / f"{name}file").touch()
    _sweep()
    assert not holder.folder.exists()
    assert link.is_symlink()
    assert (precious / "data").exists()
    assert (place / f"{name}file").exists()
    assert all((place / other).is_dir() for other in others)


def test_another_users_process_is_alive(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(process: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert scratch._runs(1)
    kept = make_scratch("test")
    _sweep()
    assert kept.is_dir()


def test_no_other_temporary_folders_are_made() -> None:
    """What is made elsewhere would stay."""
    package = Path(scratch.__file__).parent.parent
    makers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"mkdtemp|mkstemp|TemporaryDirectory|NamedTemporary", path.read_text())
    }
    assert makers == {"machine/scratch.py"}

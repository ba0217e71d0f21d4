"""The folder of the lock, and the note in it that says who times: damaged, shared, another's."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lock_processes import COMPUTING, TIMING, Other

from autocompress.errors import MeasurementError
from autocompress.machine.lock import after_timing, lock_folder, timing_lock

_DAMAGED = [
    *("", "{", "[]", '{"about": 1}', '{"since": "x", "about": ""}'),
    *('{"since": NaN, "about": "a"}', '{"since": -1e9, "about": "a"}'),
    *('{"since": 1e18, "about": "a"}', '{"since": Infinity, "about": "a"}'),
]


@pytest.mark.parametrize("text", _DAMAGED)
def test_a_damaged_note_of_the_holder_harms_nobody(
    start: Callable[[str], Other], text: str
) -> None:
    """Computing pauses for as long as the timing lasts, neither shorter nor longer."""
    holder = start(TIMING)
    assert holder.reaches("holding")
    (lock_folder() / "holder.json").write_text(text)
    assert not start(COMPUTING).reaches("holding", 0.3)
    threading.Timer(0.1, holder.let_go).start()
    after_timing()
    with timing_lock():
        assert json.loads((lock_folder() / "holder.json").read_text())["since"] <= time.time()
    assert not (lock_folder() / "holder.json").exists()  # nobody holds it


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_in_the_notes_place_is_not_read(start: Callable[[str], Other]) -> None:
    """Reading one would wait for ever."""
    holder = start(TIMING)
    assert holder.reaches("holding")
    (lock_folder() / "holder.json").unlink()
    os.mkfifo(lock_folder() / "holder.json")
    threading.Timer(0.1, holder.let_go).start()
    after_timing()


def test_the_note_holds_no_secret_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["autocompress", "--storage=postgresql://me:secret@host/x", "http://me:secret@host"]
    monkeypatch.setattr(sys, "argv", words)
    with timing_lock():
        note = (lock_folder() / "holder.json").read_text()
    assert "autocompress" in note
    assert "secret" not in note


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no sticky folders")
def test_a_shared_folder_is_everybodys_and_nobody_deletes_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(tmp_path / "shared"))
    with timing_lock():
        assert (tmp_path / "shared").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither users' ids nor links")
@pytest.mark.parametrize("name", ["timing.lock", "holder.json"])
def test_the_folder_is_the_users_own_and_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("AUTOCOMPRESS_LOCK_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with timing_lock():
        pass
    assert lock_folder().name.endswith(f"-{os.getuid()}")
    assert lock_folder().stat().st_mode & 0o777 == 0o700
    target = tmp_path / "target"
    target.write_text("kept")
    (lock_folder() / name).unlink(missing_ok=True)
    (lock_folder() / name).symlink_to(target)
    if name == "timing.lock":
        with pytest.raises(MeasurementError, match=r"timing\.lock"), timing_lock():
            pass
    else:
        with timing_lock():
            pass
    assert target.read_text() == "kept"
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    other = tmp_path / f"autocompress-lock-{os.getuid()}"
    other.mkdir()
    with pytest.raises(MeasurementError, match="belongs to user"), timing_lock():
        pass


def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(blocked))
    assert lock_folder() == blocked
    with pytest.raises(MeasurementError, match="AUTOCOMPRESS_LOCK_DIR"), timing_lock():
        pass
    after_timing()  # reading and training need no lock, and nobody can time

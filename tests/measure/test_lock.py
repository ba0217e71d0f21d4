"""The lock between real processes: shared work side by side, timing alone, nobody starved."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autocompress.errors import MeasurementError
from autocompress.measure import lock
from autocompress.measure.lock import lock_folder, machine_lock

_HOLDER = """
import sys
from autocompress.measure.lock import machine_lock
print("waiting", flush=True)
with machine_lock(exclusive=sys.argv[1] == "exclusive"):
    print("holding", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


class Holder:
    """Another process that holds the lock, or waits for it, until it is told to let go."""

    def __init__(self, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, how, "quickstart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.strip())

    def reaches(self, word: str, seconds: float = 20.0) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if word in self.said:
                return True
            time.sleep(0.01)
        return False

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Holder]]:
    monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(tmp_path / "lock"))
    made: list[Holder] = []

    def start_one(how: str) -> Holder:
        made.append(Holder(how))
        assert made[-1].reaches("waiting")
        return made[-1]

    yield start_one
    for holder in made:
        holder.process.kill()
        holder.process.wait()


def test_shared_work_runs_side_by_side(start: Callable[[str], Holder]) -> None:
    one, two = start("shared"), start("shared")
    assert one.reaches("holding")
    assert two.reaches("holding")
    with machine_lock(exclusive=False, timeout_s=5):
        assert "released" not in one.said + two.said


def test_timing_waits_for_shared_work_and_keeps_it_out(start: Callable[[str], Holder]) -> None:
    worker = start("shared")
    assert worker.reaches("holding")
    timer = start("exclusive")
    assert not timer.reaches("holding", 0.3)
    worker.let_go()
    assert timer.reaches("holding")
    late = start("shared")
    assert not late.reaches("holding", 0.3)
    with (
        pytest.raises(MeasurementError, match="not free in time"),
        machine_lock(exclusive=False, timeout_s=0.1),
    ):
        pass
    timer.let_go()
    assert late.reaches("holding")


def test_two_timings_take_turns(start: Callable[[str], Holder]) -> None:
    first = start("exclusive")
    assert first.reaches("holding")
    second = start("exclusive")
    assert not second.reaches("holding", 0.3)
    first.let_go()
    assert second.reaches("holding")


def test_a_stream_of_shared_work_does_not_starve_a_timing(start: Callable[[str], Holder]) -> None:
    early = start("shared")
    assert early.reaches("holding")
    timer = start("exclusive")
    assert not timer.reaches("holding", 0.3)
    late = start("shared")
    # the lock is shared at this moment, yet whoever comes after the timing queues behind it
    assert not late.reaches("holding", 0.3)
    early.let_go()
    assert timer.reaches("holding")
    assert "holding" not in late.said
    timer.let_go()
    assert late.reaches("holding")


def test_a_killed_holder_frees_the_lock(start: Callable[[str], Holder]) -> None:
    dead = start("exclusive")
    assert dead.reaches("holding")
    dead.process.kill()
    dead.process.wait()
    with machine_lock(exclusive=True, timeout_s=5):
        pass


def test_it_can_be_taken_again_by_its_own_thread() -> None:
    with machine_lock(exclusive=True), machine_lock(exclusive=True), machine_lock(exclusive=False):
        pass
    with machine_lock(exclusive=False):
        with machine_lock(exclusive=False):
            pass
        with pytest.raises(MeasurementError, match="shared"), machine_lock(exclusive=True):
            pass
    with machine_lock(exclusive=True, timeout_s=1):
        pass


def test_an_exception_inside_frees_it() -> None:
    with pytest.raises(ZeroDivisionError), machine_lock(exclusive=True):
        raise ZeroDivisionError
    with machine_lock(exclusive=True, timeout_s=1):
        pass


def test_another_thread_of_the_same_process_is_kept_out() -> None:
    reached = threading.Event()

    def take() -> None:
        with machine_lock(exclusive=False):
            reached.set()

    with machine_lock(exclusive=True):
        thread = threading.Thread(target=take)
        thread.start()
        assert not reached.wait(0.2)
    assert reached.wait(10)
    thread.join()


@pytest.mark.parametrize(("how", "doing"), [("exclusive", "timing"), ("shared", "computing")])
def test_a_wait_says_for_whom_and_how_long(
    start: Callable[[str], Holder],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
    doing: str,
) -> None:
    monkeypatch.setattr(lock, "_FIRST_WORD_S", 0.2)
    monkeypatch.setattr(lock, "_NEXT_WORD_S", 0.5)
    caplog.set_level(logging.INFO, "autocompress.measure.lock")
    dead = start("shared")
    assert dead.reaches("holding")
    dead.process.kill()
    dead.process.wait()
    holder = start(how)
    assert holder.reaches("holding")
    assert len(list(lock_folder().glob("holder-*"))) == 2
    threading.Timer(1.6, holder.let_go).start()
    with machine_lock(exclusive=True):
        assert holder.reaches("released")
    said = [record.getMessage() for record in caplog.records]
    pattern = (
        rf"waiting for process {holder.process.pid} \(-c {how} quickstart\), "
        rf"which has been {doing} for (\d+) s; waited for (\d+) s so far"
    )
    assert len(said) >= 2
    matches = [re.fullmatch(pattern, text) for text in said]
    assert all(matches), said
    assert [int(m[2]) for m in matches if m] == sorted(int(m[2]) for m in matches if m)
    # whom the system has freed of its lock is forgotten, and so is who has let go
    assert list(lock_folder().glob("holder-*")) == []


def test_work_of_ones_own_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A search computes in one thread while another one waits to time something."""
    monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(tmp_path / "lock"))
    monkeypatch.setattr(lock, "_FIRST_WORD_S", 0.1)
    caplog.set_level(logging.DEBUG, "autocompress.measure.lock")
    held, said = threading.Event(), threading.Event()

    def compute() -> None:
        with machine_lock(exclusive=False):
            held.set()
            said.wait(10)

    threading.Thread(target=compute).start()
    held.wait()
    threading.Timer(0.6, said.set).start()
    with machine_lock(exclusive=True):
        said_so = list(caplog.records)
    assert said_so
    own = "waiting for this program's own work, which has been computing for 0 s"
    assert said_so[0].getMessage().startswith(own)
    assert {record.levelno for record in said_so} == {logging.DEBUG}  # nobody can act on it


def test_short_waits_and_free_locks_say_nothing(
    start: Callable[[str], Holder], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "autocompress.measure.lock")
    holder = start("exclusive")
    assert holder.reaches("holding")
    threading.Timer(0.2, holder.let_go).start()
    with machine_lock(exclusive=True):
        pass
    with machine_lock(exclusive=False):
        pass
    assert caplog.records == []


def test_who_gives_up_is_told_who_holds_it(start: Callable[[str], Holder]) -> None:
    holder = start("exclusive")
    assert holder.reaches("holding")
    with (
        pytest.raises(MeasurementError, match=f"held by process {holder.process.pid}"),
        machine_lock(exclusive=False, timeout_s=0.1),
    ):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither users' ids nor links")
def test_the_folder_is_the_users_own_and_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOCOMPRESS_LOCK_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with machine_lock(exclusive=True):
        pass
    assert lock_folder().name.endswith(f"-{os.getuid()}")
    assert lock_folder().stat().st_mode & 0o777 == 0o700
    target = tmp_path / "target"
    target.write_text("kept")
    (lock_folder() / "room").unlink()
    (lock_folder() / "room").symlink_to(target)
    with pytest.raises(MeasurementError, match="room"), machine_lock(exclusive=True):
        pass
    assert target.read_text() == "kept"
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    other = tmp_path / f"autocompress-lock-{os.getuid()}"
    other.mkdir()
    with pytest.raises(MeasurementError, match="belongs to user"), machine_lock(exclusive=True):
        pass


def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(blocked))
    assert lock_folder() == blocked
    with (
        pytest.raises(MeasurementError, match="AUTOCOMPRESS_LOCK_DIR"),
        machine_lock(exclusive=False),
    ):
        pass

"""The lock between real processes: one timing at a time, computing that pauses, nobody stuck."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autocompress.errors import MeasurementError
from autocompress.machine import lock
from autocompress.machine.lock import after_timing, lock_folder, timing_lock

_TIMING = """
import sys
from autocompress.machine.lock import timing_lock
print("waiting", flush=True)
with timing_lock():
    print("holding", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""
_COMPUTING = """
from autocompress.machine.lock import after_timing
print("waiting", flush=True)
after_timing()
print("holding", flush=True)
"""

_BUSY = """
import sys, threading
from autocompress.machine.lock import pause_anywhere
count = 0
def answer():
    for line in sys.stdin:
        print(f"count {count}", flush=True)
threading.Thread(target=answer, daemon=True).start()
pause_anywhere()
print("waiting", flush=True)
while True:
    count += 1
"""


class Other:
    """Another process that times until it is told to let go, or that computes after timing."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "search", "quickstart"],
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

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


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


def held(seconds: float = 5.0) -> bool:
    """Whether this thread gets the lock within some seconds."""
    reached = threading.Event()

    def take() -> None:
        with timing_lock():
            reached.set()

    threading.Thread(target=take, daemon=True).start()
    return reached.wait(seconds)


def test_two_timings_take_turns(start: Callable[[str], Other]) -> None:
    first = start(_TIMING)
    assert first.reaches("holding")
    second = start(_TIMING)
    assert not second.reaches("holding", 0.3)
    first.let_go()
    assert second.reaches("holding")


def test_computing_pauses_while_somebody_times(start: Callable[[str], Other]) -> None:
    timer = start(_TIMING)
    assert timer.reaches("holding")
    worker = start(_COMPUTING)
    assert not worker.reaches("holding", 0.3)
    timer.let_go()
    assert worker.reaches("holding")


def test_computing_keeps_no_timing_waiting(start: Callable[[str], Other]) -> None:
    """A hung metric, too: whoever computes holds nothing."""
    after_timing()
    assert start(_TIMING).reaches("holding")


@pytest.mark.parametrize("code", [_TIMING, _COMPUTING])
def test_a_killed_holder_frees_the_lock(start: Callable[[str], Other], code: str) -> None:
    dead = start(_TIMING)
    assert dead.reaches("holding")
    dead.kill()
    assert start(code).reaches("holding")


def test_it_can_be_taken_again_by_its_own_thread() -> None:
    with timing_lock():
        with timing_lock():
            after_timing()
        assert not held(0.3)
    assert held()


def test_an_exception_inside_frees_it() -> None:
    with pytest.raises(ZeroDivisionError), timing_lock():
        raise ZeroDivisionError
    assert held()


def test_another_thread_of_the_same_process_pauses() -> None:
    reached = threading.Event()

    def compute() -> None:
        after_timing()
        reached.set()

    with timing_lock():
        thread = threading.Thread(target=compute)
        thread.start()
        assert not reached.wait(0.2)
    assert reached.wait(10)
    thread.join()


@pytest.mark.parametrize("wait", [timing_lock, after_timing])
def test_a_wait_says_for_whom_and_how_long(
    start: Callable[[str], Other],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait: Callable[[], object],
) -> None:
    monkeypatch.setattr(lock, "_FIRST_WORD_S", 0.2)
    monkeypatch.setattr(lock, "_NEXT_WORD_S", 0.5)
    caplog.set_level(logging.INFO, "autocompress.machine.lock")
    holder = start(_TIMING)
    assert holder.reaches("holding")
    threading.Timer(1.6, holder.let_go).start()
    if wait is after_timing:
        after_timing()
    else:
        with timing_lock():
            pass
    said = [record.getMessage() for record in caplog.records]
    pattern = (
        rf"waiting for process {holder.process.pid} \(-c search quickstart\), "
        r"which has been timing for (\d+) s; waited for (\d+) s so far"
    )
    assert len(said) >= 2
    matches = [re.fullmatch(pattern, text) for text in said]
    assert all(matches), said
    assert [int(m[2]) for m in matches if m] == sorted(int(m[2]) for m in matches if m)


def test_short_waits_and_free_locks_say_nothing(
    start: Callable[[str], Other], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "autocompress.machine.lock")
    holder = start(_TIMING)
    assert holder.reaches("holding")
    threading.Timer(0.2, holder.let_go).start()
    with timing_lock():
        pass
    after_timing()
    assert caplog.records == []


def test_who_holds_it_for_too_long_is_passed_by(
    start: Callable[[str], Other],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stopped process of whoever it be stops no study: computing goes on, then timing, too."""
    monkeypatch.setattr(lock, "_PAUSE_S", 0.5)
    monkeypatch.setattr(lock, "_LONGEST_S", 1.0)
    holder = start(_TIMING)
    assert holder.reaches("holding")
    begin = time.monotonic()
    for _ in range(50):
        after_timing()
    assert time.monotonic() - begin < 5.0  # one pause, not fifty
    with timing_lock():
        assert "released" not in holder.said
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith(f"timing beside process {holder.process.pid}")


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
    holder = start(_TIMING)
    assert holder.reaches("holding")
    (lock_folder() / "holder.json").write_text(text)
    assert not start(_COMPUTING).reaches("holding", 0.3)
    threading.Timer(0.1, holder.let_go).start()
    after_timing()
    with timing_lock():
        assert json.loads((lock_folder() / "holder.json").read_text())["since"] <= time.time()
    assert not (lock_folder() / "holder.json").exists()  # nobody holds it


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_in_the_notes_place_is_not_read(start: Callable[[str], Other]) -> None:
    """Reading one would wait for ever."""
    holder = start(_TIMING)
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
    monkeypatch.delenv("AUTOCOMPRESS_LOCK_DIR")
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


def _counted(busy: Other) -> int:
    """How far a busy process is."""
    before = len(busy.said)
    busy.let_go()
    end = time.monotonic() + 20.0
    while len(busy.said) == before and time.monotonic() < end:
        time.sleep(0.01)
    return int(busy.said[before].removeprefix("count "))


def _until(moves: bool, busy: Other, seconds: float = 20.0) -> bool:
    """Wait until a busy process gets on, or does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = _counted(busy)
        time.sleep(0.2)
        if (_counted(busy) != before) == moves:
            return True
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_worker_pauses_in_the_middle_of_what_it_does(start: Callable[[str], Other]) -> None:
    """Without a word from its code, and as often as somebody times."""
    busy = start(_BUSY)
    for _ in range(2):
        assert _until(True, busy)
        timing = start(_TIMING)
        assert timing.reaches("holding")
        assert _until(False, busy)
        timing.let_go()
    assert _until(True, busy)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_worker_looks_into_the_folder_of_the_moment(start: Callable[[str], Other]) -> None:
    """It may be told of another one after it was made."""
    late = "pause_anywhere()\nimport os\nos.environ['AUTOCOMPRESS_LOCK_DIR'] = folder"
    begun = f"folder = {str(lock_folder())!r}\nimport os\n"
    begun += "os.environ['AUTOCOMPRESS_LOCK_DIR'] = folder + '-elsewhere'"
    busy = start(begun + _BUSY.replace("pause_anywhere()\nprint", f"{late}\nprint"))
    timing = start(_TIMING)
    assert timing.reaches("holding")
    assert _until(False, busy)
    timing.let_go()
    assert _until(True, busy)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("taken", ["signal.SIG_DFL", "lambda *_: print('mine', flush=True)"])
def test_a_signal_that_other_code_has_taken_is_left_to_it(
    taken: str, start: Callable[[str], Other]
) -> None:
    """By default it would end the process."""
    take = f"pause_anywhere()\nimport signal\nsignal.signal(signal.SIGUSR1, {taken})"
    busy = start(_BUSY.replace("pause_anywhere()\nprint", f"{take}\nprint"))
    timing = start(_TIMING)
    assert timing.reaches("holding")
    for _ in range(5):
        assert _until(True, busy)
    assert busy.process.poll() is None
    assert "mine" not in busy.said


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_worker_does_not_pause_for_the_dead(start: Callable[[str], Other]) -> None:
    """Whose note is removed, so that nobody is asked to look again."""
    busy, timing = start(_BUSY), start(_TIMING)
    assert timing.reaches("holding")
    timing.kill()
    assert _until(True, busy)
    note, end = lock_folder() / "holder.json", time.monotonic() + 20.0
    while note.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not note.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_whoever_is_interrupted_while_it_pauses_keeps_no_lock(
    start: Callable[[str], Other],
) -> None:
    """As an evaluation is whose time is over."""

    class Over(BaseException):
        pass

    def ring(number: int, frame: object) -> None:
        raise Over

    timing = start(_TIMING)
    assert timing.reaches("holding")
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Over):
            after_timing()
    finally:
        signal.signal(signal.SIGALRM, before)
    timing.let_go()
    assert timing.reaches("released")
    later = start(_TIMING)
    assert later.reaches("holding")

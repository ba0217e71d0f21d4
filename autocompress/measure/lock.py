"""One lock per machine, so that nothing of ours computes while a latency is measured.

Timing holds the lock exclusively; work that computes holds it shared. It is a pair of lock files,
so it works between any processes of the machine (under Ray too) and is freed by the operating
system when its holder dies. A third file for each holder says who it is, for those who wait.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from autocompress.errors import MeasurementError

#: seconds between two attempts where a wait has a time limit
_POLL_S = 0.02
#: seconds until a wait is told of, and until it is told of again
_FIRST_WORD_S, _NEXT_WORD_S = 2.0, 10.0
#: Windows only locks ranges exclusively: a shared holder takes one byte, an exclusive one all
_SLOTS = 64
_log = logging.getLogger(__name__)


class _Held(threading.local):
    """What the current thread holds: how often, and whether exclusively."""

    depth = 0
    exclusive = False


_held = _Held()


def lock_folder() -> Path:
    """Where the lock files stand: ``AUTOCOMPRESS_LOCK_DIR``, or a folder of the user's own."""
    given = os.environ.get("AUTOCOMPRESS_LOCK_DIR")
    if given:
        return Path(given)
    user = f"-{os.getuid()}" if sys.platform != "win32" else ""
    return Path(tempfile.gettempdir()) / f"autocompress-lock{user}"


@contextmanager
def machine_lock(exclusive: bool, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the machine: alone (to time something), or together with other computing work.

    Re-entrant within a thread. A thread that holds it shared may not ask for it exclusively, for
    two such threads would wait for each other for ever. Do not wait, while holding it, for a child
    process that takes it too. A wait of some seconds is logged, with the process that holds it.

    Args:
        exclusive: ``True`` waits until nobody else holds it, and keeps others out. Whoever waits
            is served in turn: a stream of computing work cannot keep a measurement waiting.
        timeout_s: give up after this many seconds; ``None`` waits for ever.

    Raises:
        MeasurementError: an exclusive lock was asked inside a shared one, or the time is over.
    """
    if _held.depth:
        if exclusive and not _held.exclusive:
            raise MeasurementError(
                "The machine lock was asked exclusively by a thread that holds it shared. "
                "Leave the shared block before timing anything."
            )
        _held.depth += 1
        try:
            yield
        finally:
            _held.depth -= 1
        return
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with _open("room") as room:
        # Whoever waits for the room keeps the turnstile meanwhile, so that later comers queue
        # behind and a writer cannot starve.
        with _open("turnstile") as turnstile:
            _acquire(turnstile, True, deadline)
            try:
                _acquire(room, exclusive, deadline)
            finally:
                _release(turnstile)
        _held.depth, _held.exclusive = 1, exclusive
        try:
            with _named("timing" if exclusive else "computing"):
                yield
        finally:
            _held.depth, _held.exclusive = 0, False
            _release(room)


def _open(name: str) -> IO[bytes]:
    folder = lock_folder()
    path = folder / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform != "win32" and "AUTOCOMPRESS_LOCK_DIR" not in os.environ:
            owner = folder.lstat().st_uid
            if owner != os.getuid():
                raise PermissionError(f"it belongs to user {owner}")
        new = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = os.fdopen(os.open(path, flags), "r+b")
        if new:
            # in a folder that users share, others must be able to take the same lock
            path.chmod(0o666)
    except OSError as error:
        raise MeasurementError(
            f"The measuring lock needs a writable folder, {folder} is not one ({error}). "
            "Set AUTOCOMPRESS_LOCK_DIR to another."
        ) from None
    return file


def _acquire(file: IO[bytes], exclusive: bool, deadline: float | None) -> None:
    if _try(file, exclusive, wait=False):
        return
    with _telling():
        if deadline is None and sys.platform != "win32":
            _try(file, exclusive, wait=True)
            return
        while not _try(file, exclusive, wait=False):
            if deadline is not None and time.monotonic() > deadline:
                raise MeasurementError(
                    f"The machine lock was not free in time: it is held by {_holders()}. "
                    "Wait for it, or give more time."
                )
            time.sleep(_POLL_S)


@contextmanager
def _telling() -> Iterator[None]:
    """Log for whom this thread waits, and how long it has, while it does."""
    done, start = threading.Event(), time.monotonic()

    def tell() -> None:
        pause = _FIRST_WORD_S
        while not done.wait(pause):
            waited = time.monotonic() - start
            # nobody can do anything about work of one's own
            level = logging.DEBUG if _only_ours() else logging.INFO
            _log.log(level, "waiting for %s; waited for %.0f s so far", _holders(), waited)
            pause = _NEXT_WORD_S

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def _named(doing: str) -> Iterator[None]:
    """Keep a file that says who holds the lock; while its holder lives, it is locked itself."""
    program = Path(sys.argv[0])
    program = program.parent if program.stem == "__main__" else program
    command = " ".join([program.name, *sys.argv[1:3]])
    about = f"process {os.getpid()} ({command}), which has been {doing}"
    holder = f"holder-{os.getpid()}-{threading.get_ident()}"
    try:
        with _open(holder) as file:
            _try(file, True, wait=True)
            file.seek(_SLOTS)  # Windows lets nobody read the bytes that are locked
            file.write(json.dumps({"about": about, "since": time.time()}).encode())
            file.flush()
            try:
                yield
            finally:
                _release(file)
    finally:
        (lock_folder() / holder).unlink(missing_ok=True)


def _only_ours() -> bool:
    """Whether this process alone holds the lock."""
    found = [path.name for path in lock_folder().glob("holder-*")]
    return bool(found) and all(name.startswith(_OURS.format(os.getpid())) for name in found)


_OURS = "holder-{}-"


def _holders() -> str:
    """Who holds the lock and since when; files of processes that have died are deleted."""
    found = []
    for path in sorted(lock_folder().glob("holder-*")):
        with suppress(FileNotFoundError), path.open("rb") as file:
            if _try(file, False, wait=False):
                _release(file)
                path.unlink()
                continue
            file.seek(_SLOTS)
            text = file.read()
            if text:
                holder = json.loads(text)
                about = holder["about"]
                if path.name.startswith(_OURS.format(os.getpid())):
                    about = f"this program's own work, {about.rpartition(', ')[2]}"
                found.append(f"{about} for {time.time() - holder['since']:.0f} s")
    return " and ".join(found) or "another process"


if sys.platform == "win32":
    import msvcrt

    def _try(file: IO[bytes], exclusive: bool, wait: bool) -> bool:
        for slot in range(1 if exclusive else _SLOTS):
            file.seek(slot)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, _SLOTS if exclusive else 1)
            except OSError:
                continue
            return True
        return False

    def _release(file: IO[bytes]) -> None:
        """Closing the file, which follows, frees its ranges."""

else:
    import fcntl

    def _try(file: IO[bytes], exclusive: bool, wait: bool) -> bool:
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(file: IO[bytes]) -> None:
        # explicitly, for a forked child may hold a copy of the descriptor
        fcntl.flock(file, fcntl.LOCK_UN)

"""One lock per machine, so that nothing of ours computes while a latency is measured.

Timing holds the lock exclusively; work that computes holds it shared. It is a pair of lock files,
so it works between any processes of the machine (under Ray too) and is freed by the operating
system when its holder dies.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from autocompress.errors import MeasurementError

#: seconds between two attempts where a wait has a time limit
_POLL_S = 0.02
#: Windows only locks ranges exclusively: a shared holder takes one byte, an exclusive one all
_SLOTS = 64


class _Held(threading.local):
    """What the current thread holds: how often, and whether exclusively."""

    depth = 0
    exclusive = False


_held = _Held()


def lock_folder() -> Path:
    """Where the lock files stand: ``AUTOCOMPRESS_LOCK_DIR``, or the system's temporary folder."""
    given = os.environ.get("AUTOCOMPRESS_LOCK_DIR")
    return Path(given) if given else Path(tempfile.gettempdir()) / "autocompress-lock"


@contextmanager
def machine_lock(exclusive: bool, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the machine: alone (to time something), or together with other computing work.

    Re-entrant within a thread. A thread that holds it shared may not ask for it exclusively, for
    two such threads would wait for each other for ever. Do not wait, while holding it, for a child
    process that takes it too.

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
            yield
        finally:
            _held.depth, _held.exclusive = 0, False
            _release(room)


def _open(name: str) -> IO[bytes]:
    folder = lock_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        new = not path.exists()
        file = path.open("a+b")
        if new:
            # other users of the machine must be able to take the same lock
            path.chmod(0o666)
    except OSError as error:
        raise MeasurementError(
            f"The measuring lock needs a writable folder, {folder} is not one ({error}). "
            "Set AUTOCOMPRESS_LOCK_DIR to another."
        ) from None
    return file


def _acquire(file: IO[bytes], exclusive: bool, deadline: float | None) -> None:
    if deadline is None and sys.platform != "win32":
        _try(file, exclusive, wait=True)
        return
    while not _try(file, exclusive, wait=False):
        if deadline is not None and time.monotonic() > deadline:
            raise MeasurementError(
                "The machine lock was not free in time: another run on this machine is timing or "
                "computing. Wait for it, or give more time."
            )
        time.sleep(_POLL_S)


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

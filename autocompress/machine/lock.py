"""One lock per machine, so that nothing of ours computes while a latency is measured.

Timing holds the lock, and nothing else does: no code of a user's runs under it, and the operating
system frees it when its process dies. Work that computes pauses while somebody times, at points
that it chooses itself; see ``after_timing``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from autocompress.errors import MeasurementError
from autocompress.machine.waiting import outside_wait, seconds_to_end

#: seconds until a wait is told of, and until it is told of again
_FIRST_WORD_S, _NEXT_WORD_S = 2.0, 10.0
#: seconds without a word until a short wait is told of: beside another study there are hundreds
_QUIET_S = 60.0
#: a timing lasts seconds: who holds the lock for longer is not waited for
_PAUSE_S, _LONGEST_S = 60.0, 600.0
#: between two looks for a note of somebody who times
_LOOK_EVERY_S = 0.05
_log = logging.getLogger(__name__)


def lock_folder() -> Path:
    """Where the lock file stands: ``AUTOCOMPRESS_LOCK_DIR``, or a folder of the user's own."""
    given = os.environ.get("AUTOCOMPRESS_LOCK_DIR")
    if given:
        return Path(given)
    user = f"-{os.getuid()}" if sys.platform != "win32" else ""
    return Path(tempfile.gettempdir()) / f"autocompress-lock{user}"


@contextmanager
def timing_lock() -> Iterator[None]:
    """Keep all other timing, and computing of ours that pauses, away from this machine.

    A thread may take it again while it holds it. A wait of some seconds is logged, with the
    process that holds it, a short one at most once a minute; after ten minutes, or at the end of
    the study's time, the timing goes on beside it, with a warning. No time limit counts the wait.

    Raises:
        MeasurementError: the lock file cannot be written.
    """
    lock, again = _lock(), _lock().is_locked
    with _at_the_lock():
        free = _wait(lock, min(_LONGEST_S, seconds_to_end()))
    if not free:
        _log.warning("timing beside %s: the latency may be too high", _holder(lock)[0])
    try:
        if free and not again:
            _sign(lock)
        yield
    finally:
        if free:
            if not again:
                with suppress(OSError):
                    _note(lock).unlink(missing_ok=True)
            lock.release()


def who_times() -> str:
    """Which process times on this machine, in words; empty where none does. Waits for nobody.

    Raises:
        MeasurementError: the lock file cannot be written.
    """
    lock = _lock()
    if lock.is_locked:
        return ""
    try:
        with _at_the_lock(), _usable(lock):
            lock.acquire(timeout=0)
    except Timeout:
        return _holder(lock)[0]
    lock.release()
    return ""


def after_timing() -> None:
    """Return when nobody times anything on this machine; at once in a thread that does itself.

    For work that computes, before each piece of it. Whoever times for more than a minute is not
    waited for: a stopped process holds up no study. Where the lock's folder cannot be used nobody
    times, and computing needs none.
    """
    lock = _lock()
    if lock.is_locked or _THREAD.at_the_lock:
        return
    with _at_the_lock(), suppress(MeasurementError):
        try:
            with _usable(lock):
                lock.acquire(timeout=0)
            _forget_the_dead(lock)
        except Timeout:
            left = _PAUSE_S - (time.time() - _holder(lock)[1])
            if left > 0:
                _wait(lock, left)
        finally:  # whatever a signal raises in between: an evaluation's time may be over
            if lock.is_locked:
                lock.release()


def pause_anywhere() -> None:
    """Have the main thread of this process pause while somebody times, whatever it does.

    ``after_timing`` is called by work between its pieces, which may take a second. Here it is
    called by a signal, ``SIGUSR1``, between two instructions of Python: at the latest when the
    native call has ended that the thread is in. For worker processes; where there is no such
    signal, or code of a user's has taken it, nothing is changed.
    """
    if sys.platform == "win32":
        return
    main = threading.main_thread().ident
    assert main is not None

    def pause(number: int, frame: object) -> None:
        after_timing()

    def watch() -> None:
        while True:
            time.sleep(_LOOK_EVERY_S)
            if _fresh(_note(_lock())) and signal.getsignal(signal.SIGUSR1) is pause:
                signal.pthread_kill(main, signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, pause)
    signal.siginterrupt(signal.SIGUSR1, False)

    threading.Thread(target=watch, name="pause", daemon=True).start()


class _Told:
    """When this process last told of a wait."""

    at = -math.inf


class _Thread(threading.local):
    """Whether a thread is taking the lock: a signal may come in the middle of that."""

    at_the_lock = False


_THREAD = _Thread()


@contextmanager
def _at_the_lock() -> Iterator[None]:
    before, _THREAD.at_the_lock = _THREAD.at_the_lock, True
    try:
        yield
    finally:
        _THREAD.at_the_lock = before


def _wait(lock: BaseFileLock, seconds: float) -> bool:
    """Take the lock, and tell meanwhile for whom one waits; whether it could be taken in time."""
    start, pause = time.monotonic(), _FIRST_WORD_S
    with _usable(lock), outside_wait():
        while True:
            waited = time.monotonic() - start
            try:
                lock.acquire(timeout=max(0.0, min(pause, seconds - waited)))
            except Timeout:
                waited = time.monotonic() - start
                if waited >= seconds:
                    return False
                if pause == _NEXT_WORD_S or time.monotonic() - _Told.at >= _QUIET_S:
                    _log.info("waiting for %s; waited for %.0f s so far", _holder(lock)[0], waited)
                    _Told.at = time.monotonic()
                pause = _NEXT_WORD_S
            else:
                return True


def _lock() -> BaseFileLock:
    """The lock as this process knows it; each thread holds it for itself."""
    return _lock_in(lock_folder())


@cache
def _lock_in(folder: Path) -> BaseFileLock:
    shared = "AUTOCOMPRESS_LOCK_DIR" in os.environ
    # in a folder that users share, others must be able to take the same lock
    return FileLock(folder / "timing.lock", mode=0o666 if shared else 0o600, thread_local=True)


@contextmanager
def _usable(lock: BaseFileLock) -> Iterator[None]:
    """See to the lock's folder, and say what is wrong with it."""
    folder = Path(lock.lock_file).parent
    try:
        shared = "AUTOCOMPRESS_LOCK_DIR" in os.environ
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if shared:  # for all users, none of whom may delete what another one holds
                folder.chmod(0o1777)
        if sys.platform != "win32" and not shared:
            owner = folder.lstat().st_uid
            if owner != os.getuid():
                raise PermissionError(f"it belongs to user {owner}")
        yield
    except Timeout:
        raise
    except OSError as error:
        raise MeasurementError(
            f"The measuring lock needs a writable folder, {folder} is not one ({error}). "
            "Set AUTOCOMPRESS_LOCK_DIR to another."
        ) from None


def _sign(lock: BaseFileLock) -> None:
    """Leave word who holds the lock, for those who wait.

    Only the words of the command that are no options: these may hold a password.
    """
    program = Path(sys.argv[0])
    program = program.parent if program.stem == "__main__" else program
    words = [w for w in sys.argv[1:3] if not w.startswith("-") and "://" not in w]
    about = f"process {os.getpid()} ({' '.join([program.name, *words])}), which has been timing"
    note = _note(lock)
    try:
        note.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(note, flags, 0o644), "w") as out:
            json.dump({"about": about, "since": time.time()}, out)
    except OSError as error:
        _tell(f"others cannot be told who times here: {error}")


@cache
def _tell(text: str) -> None:
    """Warn once: a study times by the hundred."""
    _log.warning(text)


def _note(lock: BaseFileLock) -> Path:
    """Beside the lock; one that a killed process of another user left may have to stay."""
    return Path(lock.lock_file).with_name("holder.json")


def _fresh(note: Path) -> bool:
    """Whether somebody may be timing who is waited for; some notes nobody may remove."""
    try:
        return time.time() - note.lstat().st_mtime < _PAUSE_S
    except OSError:
        return False


def _forget_the_dead(lock: BaseFileLock) -> None:
    """Whoever holds the lock finds only notes of processes that were killed."""
    with suppress(OSError):
        if _note(lock).exists():
            _note(lock).unlink()


def _holder(lock: BaseFileLock) -> tuple[str, float]:
    """Who holds the lock, in words, and since when; now where nothing is known."""
    now, note = time.time(), _note(lock)
    try:
        if not stat.S_ISREG(note.lstat().st_mode):
            return "another process", now
        found = json.loads(note.read_text())
        about, since = str(found["about"])[:200], float(found["since"])
    except (OSError, ValueError, TypeError, KeyError):
        return "another process", now
    if not 0 < since <= now:
        return "another process", now
    return f"{about} for {now - since:.0f} s", since

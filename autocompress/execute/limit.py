"""A time limit for code that may hang."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from autocompress.machine.waiting import outside_wait_s

_GRACE_S = 20.0
"""How long code may take to end once it is interrupted, before it is given up."""
_SIGNAL = None if sys.platform == "win32" else signal.SIGUSR2


class TookTooLong(BaseException):
    """The time is over. Not an ``Exception``, which code that hangs may catch and go on."""


@contextmanager
def time_limit(seconds: float | None, stuck: Callable[[], object]) -> Iterator[None]:
    """Interrupt what runs here once the time is over, every second until it ends.

    Python code is interrupted anywhere, waits and sleeps in the main thread included. Native code
    that never comes back cannot be: ``stuck`` is called in another thread then.

    Args:
        seconds: ``None`` is no limit. Waits for something outside do not count.
        stuck: called once, some seconds after the end of the time.

    Raises:
        TookTooLong: in this thread.
    """
    if seconds is None:
        yield
        return
    over, guard, thread = threading.Event(), threading.Lock(), threading.current_thread()

    begun = outside_wait_s()

    def watch() -> None:
        left, given = seconds, 0.0
        while left > 0:
            if over.wait(min(left, threading.TIMEOUT_MAX)):
                return
            left, given = outside_wait_s() - begun - given, outside_wait_s() - begun
        end = time.monotonic() + _GRACE_S
        while time.monotonic() < end:
            with guard:
                if over.is_set():
                    return
                _interrupt(thread)
            if over.wait(1.0):
                return
        stuck()

    def ring(number: int, frame: object) -> None:
        if not over.is_set():
            raise TookTooLong

    with _answering(ring):
        threading.Thread(target=watch, name="time-limit", daemon=True).start()
        try:
            yield
        finally:
            with guard:
                over.set()


@contextmanager
def _answering(ring: Callable[[int, object], None]) -> Iterator[None]:
    """Answer the signal in the main thread; no other thread can."""
    if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(_SIGNAL, ring)
    try:
        yield
    finally:
        signal.signal(_SIGNAL, before)


def _interrupt(thread: threading.Thread) -> None:
    """Raise ``TookTooLong`` in a thread; a signal also ends its waits."""
    assert thread.ident is not None
    if _SIGNAL is not None and thread is threading.main_thread():
        signal.pthread_kill(thread.ident, _SIGNAL)
    else:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(TookTooLong)
        )

"""A time limit for code that may hang."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

from autocompress.machine.waiting import outside_wait_s

_GRACE_S = 20.0
"""How long code may take to end once it is interrupted, before it is given up."""
_SIGNAL = None if sys.platform == "win32" else signal.SIGUSR2


class TookTooLong(BaseException):
    """The time is over. Not an ``Exception``, which code that hangs may catch and go on."""


def time_limit(
    seconds: float | None, stuck: Callable[[], object]
) -> AbstractContextManager[object]:
    """Interrupt what runs inside once the time is over, every second until it ends.

    Python code is interrupted anywhere, waits and sleeps in the main thread included. Native code
    that never comes back cannot be: ``stuck`` is called in another thread then.

    Args:
        seconds: ``None`` is no limit. Waits for something outside do not count.
        stuck: called once, some seconds after the end of the time.

    Raises:
        TookTooLong: in this thread.
    """
    return nullcontext() if seconds is None else _Limit(seconds, stuck)


class _Limit:
    """A class, for neither its begin nor its end may be interrupted.

    A signal behind it would end the process, and an exception in another thread's end would leave
    the watch to raise it again and again. Ctrl-C may come there all the same: it goes on, after the
    limit has ended.
    """

    def __init__(self, seconds: float, stuck: Callable[[], object]) -> None:
        self._seconds, self._stuck = seconds, stuck
        self._over, self._guard = threading.Event(), threading.Lock()
        self._thread, self._begun = threading.current_thread(), 0.0
        self._before: Any = None

    def __enter__(self) -> None:
        self._begun = outside_wait_s()
        try:
            if (number := self._number) is not None:
                self._before = signal.signal(number, self._ring)
            threading.Thread(target=self._watch, name="time-limit", daemon=True).start()
        except BaseException:  # Ctrl-C, or a system that gives no further thread
            self.__exit__()
            raise

    def __exit__(self, *raised: object) -> None:
        try:
            self._end()
        except BaseException:
            self._end()
            raise
        finally:
            # what another language's code answers, which is None here, cannot be put back
            if (number := self._number) is not None and self._before is not None:
                signal.signal(number, self._before)

    def _end(self) -> None:
        with self._guard:
            self._over.set()

    @property
    def _number(self) -> signal.Signals | None:
        """The signal that comes; the main thread alone can answer one."""
        return _SIGNAL if self._thread is threading.main_thread() else None

    def _ring(self, _number: int, frame: FrameType | None) -> None:
        if not self._over.is_set() and not _at_an_edge(frame):
            raise TookTooLong

    def _watch(self) -> None:
        left, given = self._seconds, 0.0
        while left > 0:
            if self._over.wait(min(left, threading.TIMEOUT_MAX)):
                return
            waited = outside_wait_s() - self._begun
            left, given = waited - given, waited
        end = time.monotonic() + _GRACE_S
        while time.monotonic() < end:
            with self._guard:
                if self._over.is_set():
                    return
                _interrupt(self._thread)
            if self._over.wait(1.0):
                return
        self._stuck()


def _at_an_edge(frame: FrameType | None) -> bool:
    """Whether a thread begins or ends a limit: the code inside has not begun, or has ended."""
    while frame is not None:
        if frame.f_code in (_Limit.__enter__.__code__, _Limit.__exit__.__code__):
            return True
        frame = frame.f_back
    return False


def _interrupt(thread: threading.Thread) -> None:
    """Raise ``TookTooLong`` in a thread; a signal also ends its waits."""
    assert thread.ident is not None
    if _SIGNAL is not None and thread is threading.main_thread():
        signal.pthread_kill(thread.ident, _SIGNAL)
    # what is looked at here is where it is raised: that thread does not run meanwhile
    elif not _at_an_edge(sys._current_frames().get(thread.ident)):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(TookTooLong)
        )

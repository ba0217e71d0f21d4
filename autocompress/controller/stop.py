"""Ending a study early: once asked, finish what runs; asked twice, stop now."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from types import FrameType
from typing import Any

from autocompress.machine.waiting import ends_when_asked

_ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_IMPORTS_S = 5.0
"""As long as an interrupt waits for an import."""
_AGAIN_S = 0.05


class StopFlag:
    """Raised by Ctrl-C, another request to end or a caller; looked at between trials."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        """Ask for an end after the running trial."""
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def answering(handle: Callable[[int, Any], Any]) -> Iterator[None]:
    """Answer Ctrl-C, a request to end and a terminal that goes, where they are not ignored.

    Whoever starts a study with ``nohup`` wants it to go on. Outside the main thread signals cannot
    be caught, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # what another language's code answers, which is None here, cannot be put back
    heeded = [s for s in _ENDS if signal.getsignal(s) not in (signal.SIG_IGN, None)]
    before = [signal.signal(s, handle) for s in heeded]
    try:
        yield
    finally:
        for number, handler in zip(heeded, before, strict=True):
            signal.signal(number, handler)


def interrupting() -> Callable[[int, FrameType | None], None]:
    """A handler for ``answering`` that raises ``KeyboardInterrupt``, after a running import.

    A compiled module that is interrupted while it is imported says that it cannot be imported, and
    whoever asked takes it for not installed. So the interrupt comes when the import has ended; at
    once where it is asked for twice, or the import takes longer than five seconds.
    """
    pending = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if pending.is_set() or not _importing(frame):
            pending.clear()
            raise KeyboardInterrupt
        pending.set()
        threading.Thread(target=ask_again, args=(number,), daemon=True).start()

    def ask_again(number: int) -> None:
        main, until = threading.main_thread().ident or 0, monotonic() + _IMPORTS_S
        while monotonic() < until and _importing(sys._current_frames().get(main)):
            sleep(_AGAIN_S)
        if pending.is_set():
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(main, number)  # which wakes what sleeps or waits, too
            else:
                _thread.interrupt_main(signal.Signals(number))

    return handle


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def stopping_on_interrupt() -> Iterator[StopFlag]:
    """A flag that the first Ctrl-C raises; the second one interrupts at once.

    The first one also ends a wait for a device that is away or not free.

    A request to end (SIGTERM, as of a cluster's scheduler) and a terminal that goes (SIGHUP) count
    like Ctrl-C; see ``answering``.
    """
    flag = StopFlag()

    def handle(number: int, frame: Any) -> None:
        if flag.asked:
            raise KeyboardInterrupt
        flag.ask()
        end_waits()

    with ends_when_asked() as end_waits, answering(handle):
        yield flag

"""Ending a study early: once asked, finish what runs; asked twice, stop now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


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


@contextmanager
def stopping_on_interrupt() -> Iterator[StopFlag]:
    """A flag that the first Ctrl-C raises; the second one interrupts at once.

    A request to end (SIGTERM, as of a cluster's scheduler) and a terminal that goes (SIGHUP) count
    like Ctrl-C; see ``answering``.
    """
    flag = StopFlag()

    def handle(number: int, frame: Any) -> None:
        if flag.asked:
            raise KeyboardInterrupt
        flag.ask()

    with answering(handle):
        yield flag

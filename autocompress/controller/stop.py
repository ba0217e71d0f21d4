"""Ending a study early: once asked, finish what runs; asked twice, stop now."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopFlag:
    """Raised by Ctrl-C or by a caller; the loop looks at it between trials."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        """Ask for an end after the running trial."""
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def stopping_on_interrupt() -> Iterator[StopFlag]:
    """A flag that the first Ctrl-C raises; the second one interrupts at once.

    Outside the main thread signals cannot be caught, and the flag is only raised by its owner.
    """
    flag = StopFlag()

    def handle(number: int, frame: Any) -> None:
        if flag.asked:
            raise KeyboardInterrupt
        flag.ask()

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)

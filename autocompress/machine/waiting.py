"""How long this process has waited for something outside: no time limit counts that."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

_ended_s = 0.0
_since: float | None = None
_ends: float | None = None


@contextmanager
def outside_wait() -> Iterator[None]:
    """Inside, this process waits for something that is no work of its own."""
    global _ended_s, _since
    if _since is not None:
        yield
        return
    _since = time.monotonic()
    try:
        yield
    finally:
        _ended_s += time.monotonic() - _since
        _since = None


def outside_wait_s() -> float:
    """Seconds of such waits since the process began, one that goes on included."""
    return _ended_s + (0.0 if _since is None else time.monotonic() - _since)


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Inside, nothing outside is waited for beyond so many seconds from now."""
    global _ends
    before = _ends
    _ends = time.monotonic() + seconds
    try:
        yield
    finally:
        _ends = before


def seconds_to_end() -> float:
    """How long something outside may be waited for; infinite where nobody set an end."""
    return math.inf if _ends is None else max(0.0, _ends - time.monotonic())

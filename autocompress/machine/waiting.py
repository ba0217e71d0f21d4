"""How long this process has waited for something outside: no time limit counts that."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from autocompress.errors import InputError

_ended_s = 0.0
_since: float | None = None
_ends: float | None = None
_asked = False
_SLICE_S = 0.25


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
        # nothing between the two may be interrupted: a wait that never ends stops every limit
        since, _since = _since, None
        _ended_s += time.monotonic() - since


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


@contextmanager
def ends_when_asked() -> Iterator[Callable[[], None]]:
    """Inside, a call of what is given ends waits for what may never come, as a lost device."""
    global _asked

    def ask() -> None:
        global _asked
        _asked = True

    _asked = False
    try:
        yield ask
    finally:
        _asked = False


def asked_to_end() -> bool:
    """Whether somebody wants the study to end: what may never come is waited for no longer."""
    return _asked


def pause(seconds: float) -> None:
    """Sleep between two looks at what is waited for; at once over where the study is to end."""
    end = time.monotonic() + seconds
    while not _asked and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE_S))


def seconds_from(variable: str, usual: float) -> float:
    """Seconds that a variable of the environment sets: ``AUTOCOMPRESS_QUIET_WAIT_S``, the longest
    wait for a quiet machine, ``AUTOCOMPRESS_DEVICE_WAIT_S``, that for a device that is lost, or
    ``AUTOCOMPRESS_TIMING_S``, the longest timing of one file.

    Raises:
        InputError: no number of seconds.
    """
    text = os.environ.get(variable, "")
    try:
        found = float(text) if text else usual
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise InputError(f"`{variable}` must be seconds, 0 or more, got {text!r}.")
    return found

"""Keep what libraries print, from C++ too, off the user's screen."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_log = logging.getLogger(__name__)
_alone = threading.RLock()
"""The descriptors are the process's: one capture at a time."""
_NOTED = 4000
"""Characters of what was printed that an error takes along."""


@contextmanager
def silent() -> Iterator[None]:
    """Hand what is printed in here to the logger, at debug level, and to an error that is raised.

    The error has it as a note, which tracebacks show; its own message stays short.
    """
    printed = io.StringIO()
    with _alone, tempfile.TemporaryFile() as file:
        try:
            with _descriptors(file.fileno()), redirect_stdout(printed), redirect_stderr(printed):
                yield
        except Exception as error:
            text = _read(file, printed)
            if text:
                error.add_note(f"Printed before:\n{text[-_NOTED:]}")
            raise
        finally:
            text = _read(file, printed)
            if text:
                _log.debug("Printed:\n%s", text)


def _read(file: io.BufferedRandom, printed: io.StringIO) -> str:
    file.seek(0)
    return (file.read().decode("utf-8", "replace") + printed.getvalue()).strip()


@contextmanager
def _descriptors(into: int) -> Iterator[None]:
    """Point the process's standard output and error at a file, if it has them."""
    kept = {}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    try:
        for number in (1, 2):
            try:
                kept[number] = os.dup(number)
            except OSError:  # closed
                continue
            os.dup2(into, number)
        yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)

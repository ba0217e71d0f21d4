"""Standard output belongs to answers; whatever else prints in this process goes elsewhere."""

from __future__ import annotations

import os
import sys
from typing import TextIO

_kept: TextIO | None = None


def keep_for_answers() -> None:
    """From now on only ``answer`` writes to standard output.

    What models, metrics and loaders print, in native code too, goes to standard error, so that
    ``--json`` stays one object.
    """
    global _kept
    if _kept is None:
        sys.stdout.flush()
        _kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)


def answer(text: str) -> None:
    """Write a line to standard output at once."""
    out = _kept or sys.stdout
    out.write(text + "\n")
    out.flush()

"""How far long work is, for whoever watches."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with a short text and the share that is done, from 0 to 1; a few times per second."""


def silent(text: str, done: float) -> None:
    """Progress that nobody watches."""

"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def status(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A spinner that says what is going on; on standard error, so that output stays clean.

    Args:
        quiet: show nothing.
    """
    if quiet:
        yield lambda text, fraction: None
        return
    with Console(stderr=True).status("starting") as spinner:

        def say(text: str, fraction: float) -> None:
            share = f" {fraction:.0%}" if 0 < fraction < 1 else ""
            spinner.update(f"{text}{share}")

        yield say

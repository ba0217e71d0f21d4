"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import TaskID

from autocompress.controller.progress import SearchProgress
from autocompress.results.trial import MUCH_WAITING

_PIPED_WIDTH = 140
"""Columns where output goes into a file or a pipe, which have no width of their own."""


def console() -> Console:
    """Standard output, wide enough for the tables where nothing says how wide it is."""
    found = Console()
    return found if found.is_terminal else Console(width=_PIPED_WIDTH)


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


class SearchDisplay:
    """A progress bar over the trials of each phase, with the best result so far.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("[bold]{task.fields[phase]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
            disable=quiet,
            transient=False,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> SearchDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, state: SearchProgress) -> None:
        """Show the state after a trial."""
        best = "none yet" if state.best_accuracy is None else f"{state.best_accuracy:.2%}"
        text = f"best in budget {best}, hypervolume {state.hypervolume:.4g}"
        if state.seconds_left is not None:
            text += f", {state.seconds_left:.0f} s left"
        if state.waiting >= MUCH_WAITING:
            text += f", waiting for a quiet machine {state.waiting:.0%} of the time"
        if state.phase not in self._tasks:
            self._tasks[state.phase] = self._progress.add_task(
                "", total=state.total, phase=state.phase, state=text
            )
        self._progress.update(
            self._tasks[state.phase], completed=state.done, total=state.total, state=text
        )

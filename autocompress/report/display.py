"""How far a study is, on the terminal; and what the library's loggers say meanwhile."""

from __future__ import annotations

import logging
import os

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.status import Status
from rich.table import Column
from rich.text import Text

from autocompress.controller.progress import SearchProgress
from autocompress.report.terminal import PlainConsole
from autocompress.results.metric import ACCURACY
from autocompress.results.trial import MUCH_WAITING

_WIDE = 100
"""Columns that leave room for a long bar."""
_PIPED_WIDTH = 140
"""Columns where output goes into a file or a pipe, which have no width of their own; ``COLUMNS``
gives them one."""


def console() -> Console:
    """Standard output, wide enough for the tables where nothing says how wide it is."""
    found = PlainConsole()
    told = found.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return found if told else PlainConsole(width=_PIPED_WIDTH)


class Display:
    """A spinner, then a progress bar over the trials of each phase with the best so far.

    A context manager, and the ``Watcher`` of ``run.session``. All of it goes to standard error, so
    that output stays clean; so do messages of the logger ``autocompress`` from INFO on.

    Args:
        quiet: show warnings only.
        silent: not even these.
    """

    def __init__(self, quiet: bool = False, *, silent: bool = False) -> None:
        self._console = PlainConsole(stderr=True)
        self._quiet, self._silent = quiet or silent, silent
        self._spinner: Status | None = None
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._handler = _Shown(self._console)
        self._level = logging.NOTSET

    def __enter__(self) -> Display:
        if not self._silent:
            logger = logging.getLogger("autocompress")
            self._level = logger.level
            wanted = logging.WARNING if self._quiet else logging.INFO
            self._handler.setLevel(wanted)
            logger.setLevel(min(logger.getEffectiveLevel(), wanted))
            logger.addHandler(self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        for shown in (self._spinner, self._bars):
            if shown is not None:
                shown.stop()
        if not self._silent:
            logger = logging.getLogger("autocompress")
            logger.removeHandler(self._handler)
            logger.setLevel(self._level)

    def preparing(self, text: str, fraction: float) -> None:
        """Say what is going on, before the first trial is done.

        Args:
            text: a few words.
            fraction: of it, from 0 to 1; shown where it lies between.
        """
        if self._quiet or self._bars is not None:
            return
        share = f" {fraction:.0%}" if 0 < fraction < 1 else ""
        if self._spinner is None:
            self._spinner = self._console.status("")
            self._spinner.start()
        self._spinner.update(escape(f"{text}{share}"))

    def progressed(self, state: SearchProgress) -> None:
        """Show the state after a trial."""
        if self._quiet:
            return
        best = "none yet" if state.best_quality is None else state.quality.text(state.best_quality)
        name = "" if state.quality == ACCURACY else f"{state.quality.name} "
        # what matters first: a narrow terminal cuts the end off
        text = f"best {name}in budget {best}"
        if state.seconds_left is not None:
            text += f", {state.seconds_left:.0f} s left"
        text += f", hypervolume {state.hypervolume:.4g}"
        if state.waiting >= MUCH_WAITING:
            text += f", waiting for a quiet machine {state.waiting:.0%} of the time"
        bars = self._shown_bars()
        if state.phase not in self._tasks:
            self._tasks[state.phase] = bars.add_task(
                "", total=state.total, phase=state.phase, state=text
            )
        bars.update(self._tasks[state.phase], completed=state.done, total=state.total, state=text)

    def _shown_bars(self) -> Progress:
        if self._bars is None:
            if self._spinner is not None:
                self._spinner.stop()
            self._bars = Progress(
                TextColumn("[bold]{task.fields[phase]}"),
                BarColumn(bar_width=24 if self._console.width >= _WIDE else 8),
                MofNCompleteColumn(),
                _State(table_column=Column(no_wrap=False)),
                console=self._console,
            )
            self._bars.start()
        return self._bars


class _State(ProgressColumn):
    """The one column that gives way where a line is too long for the terminal."""

    def render(self, task: Task) -> Text:
        """As much of it as there is room for."""
        return Text(task.fields["state"], no_wrap=True, overflow="ellipsis")


class _Shown(logging.Handler):
    """Prints records above whatever is live on a console."""

    def __init__(self, shown_on: Console) -> None:
        super().__init__(logging.INFO)
        self._console = shown_on

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        self._console.print(escape(record.getMessage()), style=style)

"""Terminals that show ASCII alone, and narrow ones."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

_SIGNS = {"±": "+/-", "–": "-", "…": "~", "×": "x", "≤": "<=", "≥": ">=", "µ": "u", "•": "*"}
_WORDS = 16
"""Columns of a table's text that may wrap; less would be a word a line."""
_TABLE = str.maketrans(_SIGNS)


def write_anything() -> None:
    """Let the standard streams write every text: what they cannot is replaced, never an error."""
    codecs.register_error("autocompress", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="autocompress")


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Signs by their like, letters by their number: names stay different from each other."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    found = (_SIGNS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(found), error.end


class PlainConsole(Console):
    """A console that knows what its stream can write before it lays a table out.

    Tables that it has no room for become lists of their rows.
    """

    def render_str(self, text: str, **more: Any) -> Text:
        """See ``rich``."""
        known = self.encoding.startswith("utf")
        return super().render_str(text if known else text.translate(_TABLE), **more)

    def print(self, *objects: Any, **more: Any) -> None:
        """See ``rich``."""
        super().print(*(_Fitting(o) if isinstance(o, Table) else o for o in objects), **more)


class _Fitting:
    """A table where there is room for it, a list of its rows elsewhere."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [self._least(console, column) for column in self._table.columns]
        if sum(widths) + 3 * len(widths) + 1 <= options.max_width:
            yield self._table
            return
        yield from self._list(console)

    @staticmethod
    def _least(console: Console, column: Column) -> int:
        """Columns that a column of the table needs; text may wrap, down to some words a line."""
        cells = (cell for cell in (column.header, *column.cells) if isinstance(cell, str))
        widest = max((console.render_str(cell).cell_len for cell in cells), default=0)
        return widest if column.no_wrap else min(widest, _WORDS)

    def _list(self, console: Console) -> RenderResult:
        table = self._table
        if table.title:
            yield from (table.title, "")
        first, *others = table.columns
        for row, name, *cells in zip(
            table.rows, first.cells, *(column.cells for column in others), strict=True
        ):
            head = console.render_str(f"{first.header} {name}".strip(), highlight=False)
            head.stylize(row.style or "bold")
            yield head
            for column, cell in zip(others, cells, strict=True):
                if cell not in ("", "-"):
                    line = console.render_str(f"  {column.header}: {cell}", highlight=False)
                    line.stylize(row.style or "")
                    yield line
        if table.caption:
            yield from ("", table.caption)

"""What leaves for a terminal: one that shows ASCII alone, a narrow one, one that takes orders."""

from __future__ import annotations

import codecs
import io
import logging
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.errors import MarkupError
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

_SIGNS = {"±": "+/-", "–": "-", "…": "~", "×": "x", "≤": "<=", "≥": ">=", "µ": "u", "•": "*"}
_FAILING = ("strict", "surrogateescape")
"""Ways to treat what a stream cannot write that may end in an error."""
_WORDS = 16
"""Columns of a table's text that may wrap; less would be a word a line."""
_NONE = ("", "-")
"""Cells that hold nothing."""
_TABLE = str.maketrans(_SIGNS)
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys and does not show, newline and tab aside, and what turns text round."""


def shown(text: str) -> str:
    """A text without orders to the terminal: they are shown as Python writes them, ``\\x1b``."""
    return _ORDERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Shown(logging.Formatter):
    """Messages of loggers that nobody else prints."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def write_anything() -> None:
    """Let the standard streams write every text: what they cannot is replaced, never an error."""
    codecs.register_error("autocompress", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _FAILING:
            stream.reconfigure(errors="autocompress")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Shown())


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Signs by their like, letters by their number: names stay different from each other."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    found = (_SIGNS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(found), error.end


class PlainConsole(Console):
    """A console that knows what its stream can write before it lays a table out.

    Tables that it has no room for become lists of their rows. Texts may come from anyone: only
    the console's own styles and movements are orders to the terminal. Nothing is coloured for
    being a number: half of ``0.4x`` would be.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"highlight": False, **more})

    def render_str(self, text: str, **more: Any) -> Text:
        """See ``rich``."""
        text, known = shown(text), self.encoding.startswith("utf")
        text = text if known else text.translate(_TABLE)
        try:
            return super().render_str(text, **more)
        except MarkupError:  # brackets of somebody's name
            return super().render_str(text, **{**more, "markup": False})

    def print(self, *objects: Any, **more: Any) -> None:
        """See ``rich``."""
        super().print(*(_Fitting(o) if isinstance(o, Table) else o for o in objects), **more)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See ``rich``; everything that is printed comes through here, in pieces."""
        for piece in super().render(renderable, options):
            if piece.control is None:
                link = piece.style is not None and piece.style.link is not None
                style = piece.style.update_link(None) if link and piece.style else piece.style
                yield Segment(shown(piece.text), style)
            else:
                yield piece


class _Fitting:
    """A table where there is room for it, a list of its rows elsewhere."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [_texts(console, column) for column in self._table.columns]
        widths = map(self._least, self._table.columns, columns)
        plain = all(text is not None for texts in columns for text in texts)
        if not plain or sum(widths) + 3 * len(columns) + 1 <= options.max_width:
            for column in self._table.columns:  # two paths may differ at their ends only
                column.overflow = "fold"
            yield self._table
        else:
            yield from self._list([[t for t in texts if t is not None] for texts in columns])

    @staticmethod
    def _least(column: Column, texts: list[Text | None]) -> int:
        """Columns that a column of the table needs; text may wrap, down to some words a line."""
        widest = max((text.cell_len for text in texts if text is not None), default=0)
        return widest if column.no_wrap else min(widest, _WORDS)

    def _list(self, columns: list[list[Text]]) -> RenderResult:
        table = self._table
        if table.title:
            yield from (table.title, "")
        heads, *cells = zip(*columns, strict=True)
        for row, (name, *others) in zip(table.rows, cells, strict=True):
            known = [(h, c) for h, c in zip(heads[1:], others, strict=True) if c.plain not in _NONE]
            if name.plain or not known:
                begin = Text(" ").join(part for part in (heads[0], name) if part.plain)
            else:  # a row without a number says what it is where others say what was done
                begin = known.pop()[1].copy()
            begin.stylize(row.style or "bold")
            yield begin
            for head, cell in known:
                line = Text.assemble("  ", head, ": ", cell)
                line.stylize(row.style or "")
                yield line
        if table.caption:
            yield from ("", table.caption)


def _texts(console: Console, column: Column) -> list[Text | None]:
    """Head and cells of a column; ``None`` for what is more than text."""
    found: list[Text | None] = []
    for part in (column.header, *column.cells):
        if isinstance(part, str):
            found.append(console.render_str(part))
        else:
            found.append(part if isinstance(part, Text) else None)
    return found

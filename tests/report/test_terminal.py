"""Terminals that show ASCII alone, and narrow ones: nothing is lost, nothing fails."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from terminals import on_a_terminal

from autocompress.report.terminal import PlainConsole, write_anything

RUN = Path(__file__).parent.parent / "fixtures" / "run_0_1" / "run"
words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)


def printed(table: Table, width: int, encoding: str) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    PlainConsole(file=stream, width=width).print(table)
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(encoding)


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.lists(st.lists(words, min_size=n, max_size=n), min_size=2, max_size=5)
    ),
    st.integers(30, 90),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_width_every_cell_is_there_and_fits(rows: list[list[str]], width: int) -> None:
    heads, *cells = rows
    table = Table(title="T", caption="C")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in cells:
        table.add_row(*row)
    found = printed(table, width, "ascii")
    assert all(len(line) <= width for line in found.splitlines())
    for text in [*heads, *(cell for row in cells for cell in row), "T", "C"]:
        assert text in found


@given(
    st.lists(st.text("abc/_-", min_size=17, max_size=90), min_size=2, max_size=5),
    st.integers(40, 90),
)
@settings(max_examples=60, deadline=None)
def test_a_long_word_is_folded_and_not_cut_off(names: list[str], width: int) -> None:
    table = Table("file", "ms")
    for number, name in enumerate(names):
        table.add_row(name, f"{number}.25")
    found = printed(table, width, "utf-8")
    assert all(len(line) <= width for line in found.splitlines())
    inside = [line.strip("\u2502").split("\u2502")[0] for line in found.splitlines()]
    folded = "".join(cell.strip() for cell in inside)
    for name in names:
        assert name in folded
    assert "\u2026" not in found


def test_signs_are_replaced_before_the_table_is_laid_out() -> None:
    table = Table("accuracy", "mark")
    table.add_row("31.00 \u00b1 1.46", "x")
    table.add_row("31.00", "x")
    plain = printed(table, 60, "ascii").splitlines()
    assert any("31.00 +/- 1.46" in line for line in plain)
    assert len({len(line) for line in plain if "x" in line}) == 1
    assert "\u00b1" in printed(table, 60, "utf-8")


def test_texts_are_shown_as_they_are_and_tables_of_more_stay_tables() -> None:
    names = ["model[/x].onnx", "[a] n[0]"]
    table = Table("a long head of a file", "another long head")
    for name in names:
        table.add_row(Text(name), "[bold]1[/bold]")
    narrow = printed(table, 20, "utf-8")
    assert all(part in narrow.replace("\n", " ") for part in names)
    assert "bold" not in narrow
    table.add_row(Text("x"), Table("in"))
    assert "in" in printed(table, 30, "utf-8")
    assert "model[/x].onnx" not in printed(table, 20, "utf-8")  # no list of more than text


def test_a_row_without_a_number_is_named_by_what_it_is() -> None:
    table = Table("trial", "accuracy on val", "latency", "what was done", "origin")
    table.add_row("7", "97.2", "0.4 ms", "prune 28%", "switch")
    table.add_row("", "97.8", "1.1 ms", "uncompressed", "")
    lines = printed(table, 30, "utf-8").splitlines()
    titles = [line for line in lines if not line.startswith(" ")]
    assert titles == ["trial 7", "uncompressed"]
    assert lines[-2:] == ["  accuracy on val: 97.8", "  latency: 1.1 ms"]


def test_numbers_have_no_colours_of_their_own() -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=True, color_system="truecolor", width=80)
    console.print("budget: latency_ms<=0.4x; 'runs/a' [1, 2] True http://127.0.0.1:5000")
    assert "\x1b" not in stream.getvalue()
    console.print("[green]yes[/green]")
    assert "\x1b" in stream.getvalue()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_names_of_other_alphabets_stay_different(
    errors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    monkeypatch.setattr(sys, "stdout", stream)
    write_anything()
    stream.write("\u6a21\u578b-1 \u6a21\u5f0f-2 \u2026")
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    assert stream.buffer.getvalue() == rb"\u6a21\u578b-1 \u6a21\u5f0f-2 ~"


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONCOERCECLOCALE": "0"}])
@pytest.mark.parametrize("command", [["--help"], ["front", str(RUN)], ["front", "/no/\u6a21"]])
def test_forty_columns_of_ascii_are_enough(command: list[str], encoding: dict[str, str]) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "TERM": "xterm", "NO_COLOR": "1", **encoding}
    code, said = on_a_terminal(command, 40, plain)
    text = re.sub("\x1b\\[[0-9;]*m", "", said.decode("ascii").replace("\r", ""))
    assert "Traceback" not in text
    assert code == (0 if "/no/" not in command[-1] else 2), text
    if "/no/" not in command[-1]:
        assert max(map(len, text.splitlines())) <= 41, text

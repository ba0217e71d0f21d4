"""Texts of strangers give a terminal no orders: they are shown, on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import logging
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from terminals import on_a_terminal

from autocompress.cli import main
from autocompress.errors import InputError
from autocompress.report.display import Display
from autocompress.report.terminal import PlainConsole, shown, write_anything
from autocompress.run import replay
from autocompress.track.folder import RunFolder

RUN = Path(__file__).parent.parent / "fixtures" / "run_0_1" / "run"
ORDERS = [
    *(chr(n) for n in range(32) if chr(n) not in "\n\t"),
    *map(chr, range(0x7F, 0xA0)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]
HACK = "\x1b]0;HACK\x07\x1b[31m\x1b[2J\r\x9b1A\u202e"
STYLES = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[[0-9;?]*[ABGKhl]|\r")
"""Of rich's own spinners and bars."""
texts = st.text(st.one_of(st.sampled_from(ORDERS), st.characters(codec="utf-8")), max_size=30)


def left(said: str, own: re.Pattern[str] = STYLES) -> set[str]:
    """Orders in what a terminal was sent, beside the console's own."""
    return set(own.sub("", said)) & set(ORDERS)


@given(texts)
def test_a_text_without_orders_stays_and_others_say_which(text: str) -> None:
    found = shown(text)
    assert not set(found) & set(ORDERS)
    assert shown(found) == found
    assert (found == text) == (not set(text) & set(ORDERS))
    for order in set(text) & set(ORDERS):
        assert order.encode("unicode_escape").decode() in found


@given(texts, st.booleans(), st.sampled_from(["utf-8", "ascii"]))
def test_no_way_through_the_console_lets_orders_out(
    text: str, terminal: bool, encoding: str
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    console = PlainConsole(file=stream, force_terminal=terminal, width=100)
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    table.add_row(Text(text))
    for each in (text, Text(text), table, {"x": text}):
        console.print(each)
    console.print(text, markup=False, style="red", soft_wrap=True)
    console.print(f"[bold]{HACK}[/bold]", highlight=False)
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    said = stream.buffer.getvalue().decode(encoding)
    assert not left(said)
    assert r"\x1b]0;HACK\x07\x1b[31m" in said
    assert bool(STYLES.search(said)) == terminal


def test_brackets_of_a_strangers_are_no_error_and_no_link() -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=True, width=100, highlight=False)
    console.print("a name[/x] and [link=http://evil.example]another[/link]")
    console.print("[link=http://evil.example]one[/link]")
    assert "a name[/x] and" in stream.getvalue()
    assert "\x1b]8" not in stream.getvalue()


def test_a_spinner_moves_and_a_message_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("TERM", "xterm")
        with Display() as display:
            display.preparing(HACK, 0.5)
            logging.getLogger("autocompress.x").warning(HACK)
    said = capsys.readouterr().err
    assert MOVES.search(said)
    assert "HACK" in said
    assert not left(MOVES.sub("", said))


def test_a_logger_that_nobody_listens_to(capsys: pytest.CaptureFixture[str]) -> None:
    write_anything()
    assert logging.lastResort is not None
    record = logging.LogRecord("x", logging.WARNING, "x", 1, HACK, None, None)
    logging.lastResort.handle(record)
    assert not left(capsys.readouterr().err)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every text in plain data, by its container and key."""
    for key, part in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(part, str):
            yield node, key
        elif isinstance(part, dict | list):
            yield from places(part)


def poisoned(whole: Any, rng: random.Random, most: int) -> Iterator[Any]:
    """The data with one text changed, for some of the texts."""
    count = len(list(places(whole)))
    for number in rng.sample(range(count), min(most, count)):
        copy = json.loads(json.dumps(whole))
        container, key = list(places(copy))[number]
        some = "".join(rng.sample(ORDERS, 5))
        container[key] = rng.choice([HACK, f"{container[key]}{HACK}{some}", some])
        yield copy


def run_main(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", ["autocompress", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, 1, 2)
    found = capsys.readouterr()
    return found.out + found.err


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("file", ["trials.jsonl", "study.yaml", "baseline.json", "front.json"])
def test_no_text_of_a_run_gives_orders(
    file: str,
    colour: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = random.Random(f"{file} {colour}")
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
    shutil.copytree(RUN, tmp_path / "run")
    path = tmp_path / "run" / file
    if file == "trials.jsonl":
        whole: Any = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        whole = yaml.safe_load(path.read_text())
    seen = 0
    for changed in poisoned(whole, rng, 25):
        if file == "trials.jsonl":
            text = "".join(json.dumps(trial) + "\n" for trial in changed)
        else:
            text = json.dumps(changed)
        if file == "study.yaml":
            text = yaml.safe_dump(changed, explicit_end=True)
        path.write_text(text)
        said = run_main(["front", str(tmp_path / "run")], monkeypatch, capsys)
        assert said
        assert not left(said), changed
        seen += "\\x" in said
    assert seen


def test_no_text_of_a_recipe_gives_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(recipe: Any, *args: object, **more: object) -> None:
        found = recipe.model.architecture
        raise InputError(f"The model is not {found}, {recipe.study.get('name')}.")

    monkeypatch.setattr(replay, "open_recipe", stop)
    whole = yaml.safe_load((RUN / "recipes" / "best.yaml").read_text())
    path, seen = tmp_path / "x.yaml", 0
    for changed in poisoned(whole, random.Random(0), 60):
        path.write_text(yaml.safe_dump(changed))
        said = run_main(["apply", str(path)], monkeypatch, capsys)
        assert said.startswith("Error: ")
        assert not left(said), changed
        seen += "\\x" in said
    assert seen > 5
    whole["model"]["architecture"] = HACK
    path.write_text(yaml.safe_dump(whole))
    assert shown(HACK) in run_main(["apply", str(path)], monkeypatch, capsys)


def test_commands_show_orders_on_a_terminal_and_in_a_pipe(
    tmp_path: Path, make_run: Callable[..., RunFolder]
) -> None:
    run = make_run(tmp_path / "run", 8)
    changed = [json.loads(line) for line in run.trials.read_text().splitlines()]
    text = "".join(json.dumps({**trial, "origin": HACK}) + "\n" for trial in changed)
    run.trials.write_text(text)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"schema_version": HACK, HACK: 1}))
    for command in (
        ["front", "run"],
        ["track", "run", "--experiment", f"x{HACK}"],
        ["apply", "x.yaml"],
        ["front", f"absent{HACK}"],
        # these are told by Typer, which knows nothing of text that is turned round
        ["front", "run", HACK[:-1]],
        ["front", "run", f"--{HACK[:-1]}"],
    ):
        _, sent = on_a_terminal(command, 200, {"TERM": "xterm"}, tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "autocompress", *command],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        on_terminal = sent.decode().replace("\r\n", "\n")
        for said in (on_terminal, done.stdout.decode()):
            # a name that goes to MLflow has marks in place of orders
            wanted = "?]0;HACK?" if command[0] == "track" else r"\x1b]0;HACK\x07"
            assert wanted in said, command
            assert not left(said), command
        assert STYLES.search(on_terminal) or command[0] == "track"
        assert not STYLES.search(done.stdout.decode())
    asked = [sys.executable, "-m", "autocompress", "front", "run", "--json"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, check=True)
    assert HACK in {found[key] for found, key in places(json.loads(done.stdout))}
    assert rb"\u001b]0;HACK\u0007" in done.stdout

"""Paths on the command line that cannot be used: a sentence and a code, at once, no traceback."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from odd_files import MAKE

from autocompress.cli import main

RUN = Path(__file__).parent / "fixtures" / "run_0_1" / "run"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, a file, a link to nothing and a pipe."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RUN, tmp_path / "run")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for what, make in MAKE.items():
        make(tmp_path / f"{what}.yaml")
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path


LONG = "x" * 10_000
COMMANDS = [
    *(f"{command} {LONG}" for command in ("front", "track", "apply", "verify", "ui", "bench")),
    *(f"{command} {LONG}" for command in ("search", "profile", "export")),
    f"search quickstart --out {LONG}",
    "search quickstart --out link",
    "search quickstart --out link/x",
    "search quickstart --out file",
    "search quickstart --out file/x",
    f"judge {LONG} --study quickstart",
    f"export run -o {LONG}",
    f"front run --target {LONG}.json",
    "front run --target pipe.json",
    "export run -o /dev/full",
    "export run -o /dev/stdout",
    "export run -o file/x.yaml",
    "export run -o run",
    f"apply run/recipes/best.yaml -o {LONG}.onnx",
    "apply run/recipes/best.yaml -o file/x.onnx",
    "profile quickstart --export-kernels file/x.zip",
    f"profile quickstart --export-kernels {LONG}.zip",
    *(f"{c} {what}.yaml" for c in ("apply", "verify", "search", "profile") for what in MAKE),
    "search /dev/zero",
]


def outcome(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """What the command prints to standard error; it must end with exit code 1 or 2."""
    monkeypatch.setattr(sys, "argv", ["autocompress", *shlex.split(command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    return capfd.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.replace(LONG, "LONG"))
def test_a_path_that_cannot_be_used_is_a_sentence(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    said = outcome(command, monkeypatch, capfd)
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert "Errno" not in said
    assert sorted(place.rglob("*")) == before
    assert Path("/dev/full").is_char_device()


def test_standard_output_that_is_full_is_a_sentence(place: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "autocompress", "front", "run"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_a_user(*args: object) -> None:
        Path("absent").read_text()

    monkeypatch.setattr("autocompress.commands.reading.view_of", lambda *a, **m: of_a_user())
    monkeypatch.setattr(sys, "argv", ["autocompress", "front", "run"])
    with pytest.raises(FileNotFoundError):
        main()

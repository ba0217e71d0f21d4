"""``targets`` and ``bench`` as a person and as a machine call them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autocompress.cli import app
from autocompress.targets import available_targets


def called(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_targets_lists_every_runtime_for_machines_and_for_people() -> None:
    rows = json.loads(called("targets", "--json"))["targets"]
    assert [row["runtime"] for row in rows] == [found.runtime for found in available_targets()]
    shown = called("targets")
    for found in available_targets():
        assert found.runtime in shown
    remedies = ("pip install 'autocompress[", "npm install")
    assert all(row["available"] or any(r in row["reason"] for r in remedies) for row in rows)


def test_bench_prints_one_object(exported: dict[str, Path], wide_file: Path) -> None:
    path = str(exported[".onnx"])
    found = json.loads(called("bench", path, "--vs", str(wide_file), "--json"))
    assert (found["file"], found["vs"]) == (path, str(wide_file))
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert found["vs_size_bytes"] == wide_file.stat().st_size
    alone = json.loads(called("bench", path, "--threads", "2", "--batch", "3", "--json"))
    assert alone["facts"]["target"]["threads"] == 2
    assert alone["facts"]["target"]["batch"] == 3
    assert "vs" not in alone


def test_bench_for_people_shows_names_as_they_are(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[bold]a.onnx").write_bytes(exported[".onnx"].read_bytes())
    shown = called("bench", "[bold]a.onnx", "--vs", str(exported[".onnx"]))
    assert "[bold]a.onnx takes" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.onnx"], "no file absent.onnx"),
        (["model.pt2"], "opens .onnx files"),
        (["model.pt2", "--target", "tensorflow"], "no runtime 'tensorflow'"),
    ],
)
def test_what_cannot_be_timed_is_bad_input(
    arguments: list[str], said: str, exported: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "model.pt2").write_bytes(exported[".pt2"].read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "autocompress", "bench", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr

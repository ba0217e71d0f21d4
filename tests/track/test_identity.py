"""Whose a run is: a copy is another run, a moved one the same; early ones still open."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from autocompress.track.folder import RunFolder


def identity(path: Path) -> str:
    found = RunFolder(path).identity()
    assert RunFolder(path).identity() == found, "it is made once"
    return found


def rewrite(path: Path, **changes: Any) -> None:
    held = {**json.loads((path / "run.json").read_text()), **changes}
    (path / "run.json").write_text(json.dumps({k: v for k, v in held.items() if v is not None}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    identity(path)
    return path


def test_a_copy_gets_its_own_and_the_original_keeps_its(run: Path, tmp_path: Path) -> None:
    own = identity(run)
    for name in ("copy", "another"):
        shutil.copytree(run, tmp_path / name)
    found = [identity(tmp_path / name) for name in ("copy", "another")]
    assert len({own, *found}) == 3
    assert identity(run) == own


def test_a_run_that_was_moved_or_is_reached_by_a_link_keeps_its(run: Path, tmp_path: Path) -> None:
    own = identity(run)
    (tmp_path / "link").symlink_to(run)
    assert identity(tmp_path / "link") == own
    run.rename(tmp_path / "moved")
    assert identity(tmp_path / "moved") == own
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    assert identity(tmp_path / "copy") != own


def test_a_copy_whose_original_gave_way_to_another_run_keeps_its(run: Path, tmp_path: Path) -> None:
    own = identity(run)
    shutil.copytree(run, tmp_path / "backup")
    shutil.rmtree(run)
    run.mkdir()
    assert identity(run) != own
    assert identity(tmp_path / "backup") == own


def test_one_of_an_earlier_version_learns_its_folder(run: Path, tmp_path: Path) -> None:
    own = identity(run)
    rewrite(run, folder=None)
    assert identity(run) == own
    shutil.copytree(run, tmp_path / "copy")
    assert identity(tmp_path / "copy") != own


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "\x00", "/dev", "", "{pipe}"])
def test_a_strangers_folder_does_nothing(folder: str, run: Path, tmp_path: Path) -> None:
    own = identity(run)
    os.makedirs(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe" / "run.json")
    rewrite(run, folder=folder.format(pipe=tmp_path / "pipe"))
    assert identity(run) == own


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_run_below_a_folder_that_is_no_utf_8_keeps_its_identity(tmp_path: Path) -> None:
    """On Linux names of files are bytes; files of text are not."""
    above = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"))
    for name in (b"run", b"\xff"):
        root = above / os.fsdecode(name)
        root.mkdir(parents=True)
        first = RunFolder(root).identity()
        assert RunFolder(root).identity() == first
        copy = root.with_name("copy")
        shutil.copytree(root, copy)
        assert RunFolder(copy).identity() == RunFolder(copy).identity()
        assert RunFolder(root).identity() == first
        shutil.rmtree(copy)

"""A run that a stranger has put links into: nothing outside of it is written or handed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.run.tracking import track
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal

PLACES = ["trials.lock", "trials.jsonl", "report.html", "models", "models/trial-1.onnx", "x/y/z"]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("what nobody else may see or change")
    return path


@pytest.mark.parametrize("place", PLACES)
def test_a_run_with_a_link_is_refused(
    place: str, tmp_path: Path, victim: Path, make_run: Callable[..., RunFolder]
) -> None:
    run = make_run(tmp_path / "run")
    link = run.root / place
    if link.is_dir():
        link.rename(tmp_path / "aside")
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    for act in (
        lambda: Journal(run.root),
        lambda: RunFolder.open(run.root),
        lambda: track(str(run.root), f"sqlite:///{tmp_path}/ml.db", None),
    ):
        with pytest.raises(InputError, match="is a link, and a run holds plain files only"):
            act()
    assert victim.read_text() == "what nobody else may see or change"


def test_a_run_that_is_itself_behind_a_link_opens(
    tmp_path: Path, make_run: Callable[..., RunFolder]
) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert RunFolder.open(tmp_path / "link").is_run


@pytest.mark.parametrize("name", ["{victim}", "../victim"])
def test_a_summary_names_no_file_elsewhere(
    name: str, tmp_path: Path, victim: Path, make_run: Callable[..., RunFolder]
) -> None:
    run = make_run(tmp_path / "run")
    summary = run.read_front()
    named = name.format(victim=victim)
    run.front.write_text(json.dumps({**summary, "model": named}))
    assert (run.root / named).is_file()
    assert run.best_model() is None

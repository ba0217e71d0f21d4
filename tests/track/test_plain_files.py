"""A run that a stranger has put pipes, sockets and folders into: told at once, and by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_files import MAKE
from tiny_study import STUDY

from autocompress.errors import InputError
from autocompress.mlflow.server import sync_all
from autocompress.run.session import run_study
from autocompress.run.study import read_study
from autocompress.run.tracking import track
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal, read_entries
from autocompress.track.screened import ScreenedPolicies
from autocompress.track.view import RunView

pytestmark = pytest.mark.timeout(60)

FILES = (
    "trials.jsonl",
    "trials.lock",
    "screened.jsonl",
    "study.yaml",
    "front.json",
    "run.json",
    "report.html",
    "baseline.json",
    "baseline_test.json",
)
FOLDERS = ("models", "recipes", "earlier")
PLACES = [
    *((name, what) for name in FILES for what in MAKE),
    *((name, what) for name in FOLDERS for what in ("pipe", "file")),
    ("models/trial-1.onnx", "pipe"),
    ("x/y/z", "socket"),
]


def put(root: Path, name: str, what: str) -> None:
    path = root / name
    if path.is_dir():
        path.rename(root.parent / f"aside-{name}")
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    MAKE.get(what, Path.touch)(path)


def commands(root: Path) -> list[Callable[[], object]]:
    study = read_study(STUDY)
    return [
        lambda: RunFolder.open(root),
        lambda: RunFolder.create(root, resume=True),
        lambda: Journal(root),
        lambda: RunView.load(str(root)),
        lambda: track(str(root), f"sqlite:///{root.parent}/ml.db", None),
        lambda: run_study(study, root, resume=True),
    ]


@pytest.mark.parametrize(("name", "what"), PLACES)
def test_a_run_that_is_not_plain_is_refused(
    name: str, what: str, tmp_path: Path, make_run: Callable[..., RunFolder]
) -> None:
    run = make_run(tmp_path / "run", 3)
    put(run.root, name, what)
    assert RunFolder.all(tmp_path) == [run]
    for act in commands(run.root):
        with pytest.raises(InputError, match=rf"/{name} is a {what}, and a run has a .* there"):
            act()


@pytest.mark.parametrize("what", ["pipe", "folder"])
def test_a_journal_alone_that_is_none_is_told_of(tmp_path: Path, what: str) -> None:
    put(tmp_path / "run", "trials.jsonl", what)
    with pytest.raises(InputError, match=f"trials.jsonl is a {what}"):
        RunFolder.open(tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder.create(tmp_path / "run")


@pytest.mark.parametrize("what", ["pipe", "folder"])
def test_a_reader_of_its_own_does_not_wait_for_a_pipe(tmp_path: Path, what: str) -> None:
    put(tmp_path / "run", "trials.jsonl", what)
    with pytest.raises(InputError, match=f"trials.jsonl is a {what}, and a journal is a plain"):
        read_entries(tmp_path / "run")


@pytest.mark.parametrize("name", ["trials.lock", "trials.jsonl", "models"])
def test_one_bad_run_does_not_hide_the_others(
    name: str, tmp_path: Path, make_run: Callable[..., RunFolder]
) -> None:
    for each in ("a", "b", "c"):
        make_run(tmp_path / each, 3)
    put(tmp_path / "b", name, "file" if name == "models" else "folder")
    done, skipped = sync_all(tmp_path)
    assert set(done) == {"a", "c"}
    assert set(skipped) == {"b"}
    assert name in skipped["b"]


@pytest.mark.parametrize("place", ["file", "file/x", "link", "link/x"])
def test_a_run_needs_folders(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"A run needs a folder.*Choose another --out"):
        RunFolder.create(tmp_path / place)


@pytest.mark.skipif(os.getuid() == 0, reason="root looks into every folder")
def test_a_folder_that_may_not_be_looked_into_hides_no_run(
    tmp_path: Path, make_run: Callable[..., RunFolder]
) -> None:
    run = make_run(tmp_path / "run", 3)
    (tmp_path / "closed").mkdir(mode=0)
    assert RunFolder.all(tmp_path) == [run]


def huge(path: Path, begin: bytes, end: bytes) -> None:
    path.write_bytes(begin)
    os.truncate(path, 10**9)
    with path.open("ab") as file:
        file.write(end)


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_journal_of_a_gigabyte_without_lines_is_damaged_and_stays(
    end: bytes, tmp_path: Path, make_run: Callable[..., RunFolder]
) -> None:
    run = make_run(tmp_path / "run", 3)
    begin = run.trials.read_bytes()
    huge(run.trials, begin, end)
    line = begin.count(b"\n") + 1
    for act in (lambda: read_entries(run), lambda: Journal(run)):
        with pytest.raises(InputError, match=f"line {line}, is longer than 16 MB.*Remove that"):
            act()
    assert run.trials.stat().st_size == 10**9 + len(end)


@pytest.mark.parametrize("end", [b"\n", b""])
def test_screened_policies_of_a_gigabyte_are_damaged(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "screened.jsonl"
    huge(path, b"", end)
    with pytest.raises(InputError, match=r"line 1, is longer than 16 MB.*Delete the file"):
        ScreenedPolicies(path, {})

"""A folder that one cascade takes over from another."""

from __future__ import annotations

from pathlib import Path

from autocompress.cascade.manifest import MANIFEST, Manifest, Stage
from autocompress.run.cascade_files import settle


def manifest(*files: str) -> Manifest:
    *others, last = [Stage((name,), (1.0,), 0.5) for name in files]
    return Manifest("margin", "softmax", 0, (*others, Stage(last.files, (1.0,), None)))


def test_members_of_the_earlier_cascade_go_and_nothing_else(tmp_path: Path) -> None:
    """Whatever its manifest, which may come from anybody, calls a member."""
    made, folder = tmp_path / "made", tmp_path / "folder"
    made.mkdir()
    (folder / "notes.onnx").mkdir(parents=True)
    for place, name in ((made, "a.onnx"), (made, "b.onnx"), (folder, "a.onnx")):
        (place / name).write_text(f"{name} of {place.name}")
    (folder / "old.onnx").write_text("of the earlier one")
    (folder / "thesis.txt").write_text("mine")
    manifest("a.onnx", "b.onnx").save(made)
    manifest("a.onnx", "old.onnx", "thesis.txt", "notes.onnx", MANIFEST).save(folder)
    settle(made, folder)
    assert {path.name for path in folder.iterdir()} == {
        *("a.onnx", "b.onnx", MANIFEST),
        *("thesis.txt", "notes.onnx"),
    }
    assert (folder / "a.onnx").read_text() == "a.onnx of made"
    assert Manifest.load(folder) == Manifest.load(made)

"""What the README and the shipped studies promise is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_table_of_the_readme_names_every_command() -> None:
    import typer

    from autocompress.cli import app

    root = typer.main.get_command(app)
    cells = re.findall(r"^\| (`.+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = {code.split()[0] for cell in cells for code in re.findall(r"`(.+?)`", cell)}
    assert named == set(root.commands)  # type: ignore[attr-defined]  # a click group, as above


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_document_that_the_readme_names_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_shipped_studies_and_spaces_read() -> None:
    from autocompress.run.study import load_study, shipped

    for name in shipped("studies"):
        study = load_study(name)
        assert study.name == name
        assert study.space_config().rules


def test_the_gallery_shows_every_shipped_study() -> None:
    from autocompress.run.study import shipped

    text = (ROOT / "docs/gallery.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(shipped("studies"))


def test_a_picture_shows_the_front_of_its_run(tmp_path: Path) -> None:
    """Read again from the SVG: each member at its latency, on the scale of the axis."""
    from xml.etree import ElementTree

    import front_picture
    import handmade_run

    from autocompress.track.view import RunView

    run = handmade_run.make_run(tmp_path / "resnet20", 40)
    front_picture.main([str(run.root), "-o", str(tmp_path / "front.svg")])
    found = ElementTree.parse(tmp_path / "front.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    dots = [c for c in found.iter(f"{space}circle") if c.get("class") in ("front", "chosen")]
    view = RunView.load(run)
    assert len(dots) == len(view.front) > 3
    assert [c.get("class") for c in dots].count("chosen") == 1
    (whole,) = (c for c in found.iter(f"{space}circle") if c.get("class") == "whole")
    labels = {t.text: t for t in found.iter(f"{space}text") if t.get("text-anchor") == "middle"}
    scale = float(labels["1"].get("x", "")) - float(labels["0"].get("x", ""))
    for dot, trial in zip(dots, view.front, strict=True):
        assert trial.measurement is not None
        ms = (float(dot.get("cx", "")) - float(labels["0"].get("x", ""))) / scale
        assert abs(ms - trial.measurement["latency_ms"]) < 0.005
    heights = [float(dot.get("cy", "")) for dot in dots]
    assert heights == sorted(heights, reverse=True), "the costlier, the better"
    assert float(whole.get("cx", "")) > max(float(dot.get("cx", "")) for dot in dots)

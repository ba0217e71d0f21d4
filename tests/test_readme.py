"""What the README and the shipped studies promise is there."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("far", [1.0, 100.0], ids=["logarithmic", "linear"])
def test_a_picture_shows_the_front_of_its_run(
    far: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again from the SVG: each member at its latency, on the scale of the axis."""
    from xml.etree import ElementTree

    import front_picture
    import handmade_run

    from autocompress.track.view import RunView

    monkeypatch.setattr(front_picture, "_FAR", far)
    scaled = math.log if far == 1.0 else float
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
    half, one = (float(labels[text].get("x", "")) for text in ("0.5", "1"))
    scale = (one - half) / (scaled(1.0) - scaled(0.5))
    for dot, trial in zip(dots, view.front, strict=True):
        assert trial.measurement is not None
        place = one + scale * (scaled(trial.measurement["latency_ms"]) - scaled(1.0))
        assert abs(place - float(dot.get("cx", ""))) < 0.5
    heights = [float(dot.get("cy", "")) for dot in dots]
    assert heights == sorted(heights, reverse=True), "the costlier, the better"
    assert float(whole.get("cx", "")) > max(float(dot.get("cx", "")) for dot in dots)


@pytest.mark.parametrize("name", ["front.svg", "front_quickstart.svg"])
def test_no_name_lies_on_the_line_of_the_budget(name: str) -> None:
    """By at most 9 units a letter, in a font of 13."""
    from xml.etree import ElementTree

    found = ElementTree.parse(ROOT / "docs" / name).getroot()
    space = "{http://www.w3.org/2000/svg}"
    (line,) = (x for x in found.iter(f"{space}line") if x.get("class") == "budget")
    budget = float(line.get("x1", ""))
    names = [t for t in found.iter(f"{space}text") if (t.text or "").isalpha()]
    assert {"budget", "chosen", "uncompressed", "uniform"} <= {t.text for t in names}
    for text in names:
        x, wide = float(text.get("x", "")), 9 * len(text.text or "")
        left = x - wide if text.get("text-anchor") == "end" else x
        assert not left < budget < left + wide, text.text

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

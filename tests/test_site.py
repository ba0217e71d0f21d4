"""The documentation builds as a site without a warning, and its commands are known."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from autocompress.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        place = page.relative_to(ROOT / "docs").with_suffix("")
        place = place.parent if place.name in ("index", "README") else place
        assert (tmp_path / "site" / place / "index.html").is_file(), page
    assert not [p for p in (tmp_path / "site").rglob("*") if p.suffix in (".py", ".pyc")]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_of_a_page_are_known_with_all_their_options(page: Path) -> None:
    root = typer.main.get_command(app)
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^autocompress (.+?)(?:\s+#.*)?$", block, re.MULTILINE):
            name, *words = shlex.split(line)
            command = root.commands[name]  # type: ignore[attr-defined]  # a click group, by typer's word a command
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            for word in words:
                if word.startswith("-"):
                    assert word in known, f"{page.name}: {name} has no {word}"

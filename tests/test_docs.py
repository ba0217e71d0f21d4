"""Links, anchors and file names in the documentation lead somewhere; what extensions can write is
told in full."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autocompress.policy.technique import Technique
from autocompress.targets import Target

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda p: str(p.relative_to(ROOT))
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(
    r"\b((?:autocompress|tests|benchmarks|studies|search_spaces|docs)/[\w/.-]+\.\w+)\b"
)


def anchors(page: Path) -> set[str]:
    """Of the headings, as the usual hosts make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    for name in set(_FILE.findall(page.read_text(encoding="utf-8"))):
        if not name.startswith(("benchmarks/out", "studies/your")):
            assert (ROOT / name).exists(), name


THERE = {"elsewhere", "reach", "machine", "machine_id", "fields", "timing_lock"}
"""Of a target whose files are timed on another device: that of ONNX Runtime alone has one."""


@pytest.mark.parametrize(
    ("heading", "base", "left"),
    [
        ("A target", Target, {"config", "open", "availability", "describe", *THERE}),
        ("A technique", Technique, set()),
    ],
)
def test_tables_name_all_that_an_extension_can_write(
    heading: str, base: type, left: set[str]
) -> None:
    """All public names of the base class but those that are its own affair."""
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.+?`) \| ", section, re.MULTILINE)
    told = [name for cell in cells for name in re.findall(r"`(\w+)", cell)]
    assert len(told) == len(set(told))
    names = {name for name in {**vars(base), **base.__annotations__} if not name.startswith("_")}
    assert set(told) == names - left

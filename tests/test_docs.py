"""Links, anchors and file names in the documentation lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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

"""The words of docs/glossary.md: what it has replaced is said nowhere any more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = {
    "autocompress": (".py", ".j2"),
    "docs": (".md",),
    "studies": (".yaml",),
    "search_spaces": (".yaml",),
    "benchmarks": (".py",),
    "examples": (".py", ".yaml"),
    "tests": (".py",),
}
FILES = sorted(
    [
        ROOT / "README.md",
        *(
            p
            for name, ends in PLACES.items()
            for p in (ROOT / name).rglob("*")
            if p.suffix in ends and p != Path(__file__)
        ),
    ]
)
REPLACED = {
    r"hopeless\w*": "infeasible by estimate",
    r"dear(er|est)?": "expensive",
    r"sittings?": "repetition",
    r"stand[-_]?ins?": "stub, or what it stands for",
    r"weigh(s|ed|ing)?": "memory, bytes, or what something is worth",
    r"simple ways?": "reference policy",
}
"""Patterns of whole words, and what is said in their place."""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_replaced_words_are_not_said(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [
        f"line {text.count(chr(10), 0, hit.start()) + 1}: {hit[0]!r}, say: {instead}"
        for pattern, instead in REPLACED.items()
        for hit in re.finditer(rf"(?<![^\W_])({pattern})(?![^\W_])", text, re.IGNORECASE)
    ]
    assert not found, found

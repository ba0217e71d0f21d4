"""The words of docs/glossary.md: what it has replaced is said nowhere any more, and a class that
has one of its names is the only one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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
NAMES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *ROOT.glob("*.md"),
        *(
            p
            for name, ends in PLACES.items()
            for p in (ROOT / name).rglob("*")
            if p.suffix in ends and p != Path(__file__)
        ),
    )
)
PROPOSALS = (
    *("autocompress/controller", "autocompress/estimate", "autocompress/track"),
    *("autocompress/report", "tests/controller", "tests/estimate", "tests/track", "tests/report"),
    *("benchmarks", "docs/search.md", "docs/measurements/search_quality.md"),
)
"""What is about proposals and what they are worth. Elsewhere a policy promises kernels, which the
gate checks."""
REPLACED = {
    r"(?i:hopeless\w*)": "infeasible by estimate",
    r"(?i:dear(er|est)?)": "expensive",
    r"(?i:sittings?)": "repetition",
    r"(?i:stand[-_]?ins?)": "stub, or what it stands for",
    r"(?i:weigh(s|ed|ing)?)": "memory, bytes, or what something is worth",
    r"(?i:simple ways?)": "reference policy",
    r"(?i:promise[sd]?)": "expected improvement",
    # at the start of a sentence it is no name
    r"Beside(?!\s+[a-z])": "paired timing",
}
"""Patterns of whole words, and what is said in their place."""
ONLY_IN = {r"(?i:promise[sd]?)": PROPOSALS}
NEWS = {"CHANGELOG.md": "(before: `dearest`)"}
"""What tells that a word was replaced."""


def replaced(name: str, text: str) -> list[str]:
    """The replaced words in the text of a file, each with its line and what to say."""
    return [
        f"line {text.count(chr(10), 0, hit.start()) + 1}: {hit[0]!r}, say: {instead}"
        for pattern, instead in REPLACED.items()
        if name.startswith(ONLY_IN.get(pattern, ""))
        for hit in re.finditer(rf"(?<![^\W_])({pattern})(?![^\W_])", text)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_replaced_words_are_not_said(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    told = NEWS.get(name, "")
    assert told in text, "nothing is told any more: leave the exception out"
    assert not (found := replaced(name, text.replace(told, ""))), found


@pytest.mark.parametrize(
    "text",
    [
        *("a Hopeless policy", "hopelessness", "dearest_policy", "four sittings", "a stand-in"),
        *("standins", "it weighs", "two simple ways", "promise: float", "by_promise"),
        *("class Beside:", "from x import Beside", "timed = Beside(target)"),
    ],
)
def test_replaced_words_are_found(text: str) -> None:
    assert replaced("autocompress/controller/guided.py", f"one line\n{text}\n")


@pytest.mark.parametrize("text", ["Beside the lock,", "Beside\nthe lock", "the most promising"])
def test_the_same_letters_in_other_words_are_not(text: str) -> None:
    assert not replaced("autocompress/controller/guided.py", text)


def words() -> list[str]:
    """Of the glossary, as a class would be called."""
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([\w ,-]+?) \| (?!means)", text, re.MULTILINE)
    return [re.sub(r"\W", "", word.title()) for cell in cells for word in cell.split(",")]


def defined(path: Path) -> Iterator[str]:
    """Classes and aliases of types in a file, by their names without underscores."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name.strip("_")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id.strip("_")


def test_a_word_of_the_glossary_names_one_class() -> None:
    package = ROOT / "autocompress"
    places: dict[str, list[str]] = {word: [] for word in words()}
    assert {"Trial", "Recorder", "ChannelGroup", "LayerBank", "Target"} <= set(places)
    for path in sorted(package.rglob("*.py")):
        # options of commands are called as they are typed
        for name in set(defined(path)) if path.name != "options.py" else ():
            if name in places:
                places[name].append(str(path.relative_to(package)))
    several = {word: found for word, found in places.items() if len(found) > 1}
    assert not several, f"One word, one thing: rename all but one of {several}"

"""Damaged files of a run: what reads runs succeeds, or raises an error of ours."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from handmade_run import make_run

from autocompress.errors import AutocompressError, InputError
from autocompress.report.html import write_report
from autocompress.report.tables import front_table, summary_json, verdict_table
from autocompress.report.verdict import verdict
from autocompress.results.trial import Waiting
from autocompress.run.recipes import export
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.view import RunView

FIXTURES = Path(__file__).parent.parent / "fixtures" / "run_0_1"
FILES = ("study.yaml", "front.json", "baseline.json", "baseline_test.json", "trials.jsonl")
ROUNDS = 20
ODD: list[Any] = [
    None,
    True,
    -1,
    7,
    10**400,
    1e308,
    float("nan"),
    "",
    "x",
    "\0",
    [],
    {},
    [1, "x", None],
    {"x": {"y": [None]}},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of an earlier version, and one made by hand."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(FIXTURES / "run", root / "earlier")
    make_run(root / "handmade", 12)
    return {"earlier": root / "earlier", "handmade": root / "handmade"}


def read_all(root: Path) -> None:
    """What the commands that read runs do."""
    folder = RunFolder.open(root)
    view = RunView.load(folder)
    summary_json(view)
    verdict(view)
    verdict_table(view)
    front_table(view)
    assert 0 <= Waiting(view.trials).share <= 1
    write_report(folder)
    folder.best_model()
    if view.study.data.factory:  # the handmade run is of no whole study
        export(str(root), "best", root / "out" / "recipe.yaml")
    with Journal(folder) as journal:
        journal.load()


def outcome(root: Path, run: Callable[[Path], None] = read_all) -> str:
    """How it ended; anything but success or an error of ours fails the test."""
    try:
        run(root)
    except AutocompressError as error:
        return str(error)
    return ""


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with one of its keys or positions."""
    for key, part in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(part, dict | list):
            yield from places(part)


def mutate_structure(whole: Any, rng: random.Random) -> Any:
    """Replace, remove or add a value anywhere; sometimes the whole."""
    if rng.random() < 0.05:
        return rng.choice(ODD)
    whole = copy.deepcopy(whole)
    for _ in range(rng.randint(1, 2)):
        every = list(places(whole))
        if not every:
            break
        # values deep inside are many: the few at the top are as likely
        top = [(c, k) for c, k in every if c is whole]
        container, key = rng.choice(rng.choice([every, top]))
        what = rng.choice(["replace", "replace", "remove", "add"])
        if what == "remove":
            del container[key]
        elif what == "add" and isinstance(container, dict):
            container[rng.choice(["x", "number", "layers", "kind"])] = rng.choice(ODD)
        else:
            container[key] = rng.choice(ODD)
    return whole


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut, overwrite or nest."""
    what = rng.choice(["cut", "write", "write", "nest"])
    start = rng.randrange(len(content) + 1)
    if what == "cut":
        return content[:start]
    if what == "nest":
        return content[:start] + rng.choice([b"[", b'{"a":']) * 100_000 + content[start:]
    piece = rng.choice([b"", b"\xff", b"\0", b"{", b"]", b'"', b"1e999", b"\n", b"NaN", b": "])
    return content[:start] + piece + content[start + rng.randint(0, 12) :]


def written(file: str, content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    if file == "study.yaml":
        return yaml.safe_dump(mutate_structure(yaml.safe_load(content), rng)).encode()
    if file != "trials.jsonl":
        return json.dumps(mutate_structure(json.loads(content), rng)).encode()
    lines = content.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = json.dumps(mutate_structure(json.loads(lines[i]), rng)).encode()
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize(
    ("which", "file"),
    [
        *(("earlier", file) for file in FILES),
        *(("handmade", file) for file in FILES if file != "baseline_test.json"),  # it has none
    ],
)
def test_a_damaged_file_is_read_or_is_an_error_of_ours(
    runs: dict[str, Path], tmp_path: Path, which: str, file: str
) -> None:
    source = runs[which] / file
    root = tmp_path / "run"
    shutil.copytree(runs[which], root)
    assert outcome(root) == ""
    rng = random.Random(f"{which} {file}")
    refused = 0
    for _ in range(ROUNDS):
        (root / file).write_bytes(written(file, source.read_bytes(), rng))
        refused += bool(outcome(root))
    assert refused > ROUNDS / 10


def line_with(**changes: Any) -> bytes:
    """The first line of the earlier run, changed."""
    first = (FIXTURES / "run" / "trials.jsonl").read_bytes().splitlines()[0]
    return json.dumps({**json.loads(first), **changes}).encode()


DEEP = b'{"a":' * 100_000
DAMAGED: list[tuple[str, bytes, str]] = [
    ("baseline.json", b"[]", "baseline.json is not readable .* must hold a mapping"),
    ("baseline.json", b"{}", "baseline.json: the measurement lacks `values`"),
    ("baseline.json", b'{"values": {"accuracy": "x"}}', r"`values\.accuracy`.*valid number"),
    ("baseline.json", DEEP, "nested deeper than 100 levels"),
    ("front.json", DEEP, "nested deeper than 100 levels"),
    ("front.json", b'{"layers": 7}', "front.json: `layers`"),
    ("front.json", b'{"objectives": [1]}', r"front.json: `objectives\.0`"),
    ("study.yaml", b"budget: 7\nray_address: null\n", "study.yaml: `budget`.*got 7"),
    ("study.yaml", b"budget: [x]\nray_address: null\n", "study.yaml: `budget`"),
    ("study.yaml", b"search: [1]\nray_address: null\n", "study.yaml: `search`"),
    ("trials.jsonl", DEEP, "line 1, .*nested deeper than 100 levels"),
    ("trials.jsonl", b"[]", "line 1, .*must hold a mapping"),
    ("trials.jsonl", line_with(elapsed_s="x"), "line 1, .*`elapsed_s`"),
    ("trials.jsonl", line_with(number="x"), "line 1, .*`number`"),
    ("trials.jsonl", line_with(number=None), "line 1, .*`number`"),
    ("trials.jsonl", line_with(phase={"kind": "serch"}), "line 1, .*did you mean 'search'"),
    ("trials.jsonl", line_with(violations={"macs": "x"}), r"line 1, .*`violations\.macs`"),
    ("trials.jsonl", line_with(state="DONE"), "line 1, .*`state`"),
    ("trials.jsonl", line_with() + b"\n" + line_with(), "line 2, holds trial 0, .* line 1"),
]


@pytest.mark.parametrize(("file", "content", "says"), DAMAGED)
def test_damage_is_named_with_its_file_and_a_remedy(
    runs: dict[str, Path], tmp_path: Path, file: str, content: bytes, says: str
) -> None:
    root = tmp_path / "run"
    shutil.copytree(runs["earlier"], root)
    (root / file).write_bytes(content + b"\n")
    with pytest.raises(InputError, match=says) as caught:
        RunView.load(root)
    assert str(root / file) in str(caught.value)
    remedies = ("Delete the file", "Remove that line", "Remove one of them", "Put the study")
    assert any(remedy in str(caught.value) for remedy in remedies) or "`budget`" in says


def test_a_technique_that_is_not_installed_is_no_damage(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(runs["earlier"], root)
    policy = {"layers": {"conv1": {"clustered_to": 4}}}
    (root / "trials.jsonl").write_bytes(line_with(policy=policy) + b"\n")
    with pytest.raises(InputError, match=r"'clustered_to'.* Install the package") as caught:
        RunView.load(root)
    assert "Remove" not in str(caught.value)


@pytest.mark.parametrize("which", ["earlier", "handmade"])
def test_a_study_that_was_cut_off_anywhere_keeps_its_budget_or_is_refused(
    runs: dict[str, Path], tmp_path: Path, which: str
) -> None:
    root = tmp_path / "run"
    shutil.copytree(runs[which], root)
    whole = (root / "study.yaml").read_bytes()
    kept = RunView.load(root).budget
    assert kept.limits
    for end in range(len(whole)):
        (root / "study.yaml").write_bytes(whole[:end])
        try:
            RunFolder(root).read_study()
        except InputError:
            continue
        assert RunView.load(root).budget == kept

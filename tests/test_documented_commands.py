"""Every command of the README and the docs: run on a small study, or else at least read by the
parser, with the reason and the place that runs it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from tiny_study import call, study_of

from autocompress.cli import app

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: whole commands, and what stands in their place on the small study
INSTEAD = {
    "search mine.yaml --timeout 30m": "search mine.yaml --timeout 30m --dry-run",
    **{
        f"search mine.yaml {limits}": f"search mine.yaml {limits} --dry-run"
        for limits in (
            "--latency-ms 2.0",
            "--latency-ms 8",
            "--latency-ms 2.0 --max-accuracy-drop 1.0",
            "--budget latency<=0.5x --budget size<=1MB",
        )
    },
    "track runs/mine --uri http://host:5000": "track runs/mine --uri sqlite:///other.db",
    "front RUN --by latency_2": "front runs/mine --by size",
    "front RUN --sweep": "front runs/mine --sweep",
    "front runs/quickstart --open": "front runs/mine --open",
    "export runs/quickstart --pick knee -o recipe.yaml": (
        "export runs/mine --pick knee -o recipe.yaml"
    ),
    "track RUN": "track runs/mine --uri sqlite:///other.db",
}
"""A search is made once, by ``place``: with other limits it is planned, as its first step is."""
RUN = {
    *INSTEAD,
    "search mine.yaml --dry-run",
    "search mine.yaml --resume",
    "search mine.yaml --budget latency<=0.3x --dry-run",
    "front runs/mine --open",
    "front runs/mine --sweep",
    "front runs/mine --budget latency<=0.3x",
    "export runs/mine --pick knee -o recipe.yaml",
    "apply recipe.yaml -o model.onnx",
    "verify recipe.yaml",
    "evaluate mine.yaml --uniform weight_bits=8,activation_bits=8",
    "profile mine.yaml",
    "judge mine.onnx theirs.onnx --study mine.yaml",
    "targets",
    "doctor",
    "schema --markdown",
}
MAY_FAIL = ("verify", "doctor", "search")
"""What ends with 1 where this machine is noisy, or with 2 where nothing keeps to a latency."""

_SHIPPED = ("a shipped study takes minutes; it is read, and reached", "tests/test_readme.py")
_QUICKSTART = ("takes minutes; runs from the wheel, in the slow tests", "tests/test_wheel.py")
_DEVICE = ("needs a device; one on the loopback answers", "tests/run/test_device_study.py")
_SERVES = ("serves until Ctrl-C", "tests/mlflow/test_mlflow.py")
_TABLE = ("needs a table of another device", "tests/test_documented_commands.py")
_CLIENTS = ("needs the environment with Flower", "tests/federated/test_flower.py")
ELSEWHERE = {
    r"search quickstart": _QUICKSTART,
    r"search (digits_\w+|spam_minilm|NAME|vgg16.yaml)\b.*": _SHIPPED,
    r"search STUDY.yaml": _TABLE,
    r"search mine.yaml --resume --budget .*": ("a budget more", "tests/test_overrides.py"),
    r"(bench|front) .*--target ssh://.*": _DEVICE,
    r"front \S+ --target table.json": _TABLE,
    r"profile \S+ --export-kernels kernels.zip": _TABLE,
    r"federate\b.*": _CLIENTS,
    r"ui( runs| RUNS)?( --open| --dashboard)?": _SERVES,
    r"cascade \S+ .*": ("a cascade needs several members", "tests/run/test_cascading.py"),
    r"advise( mine.yaml .*)?": ("tries six ways", "tests/run/test_advice.py"),
    r"init .*": ("needs a package", "tests/run/test_first.py"),
    r"verify recipe.yaml --model mine:trained .*": ("own model", "tests/test_api_models.py"),
    r"judge .* --study cifar10_resnet20": ("needs CIFAR-10", "tests/run/test_judge.py"),
    r"judge .* --study pitch_crepe": ("needs a package's weights", "tests/run/test_judge.py"),
    r"bench runs/pitch_crepe/.*": ("of a run that takes minutes", "tests/test_commands.py"),
    r"export RUN --pick N -o recipe.yaml": ("N is a number", "tests/test_commands.py"),
    r"export RUN --target \.\.\.": ("any target", "tests/run/test_told_elsewhere.py"),
    r"apply -o.*": ("named alone", "tests/test_commands.py"),
    r"bench --target numpy": ("an example's runtime", "tests/plugins/test_plugins.py"),
    r"schema study > study.schema.json": ("into a file", "tests/test_schema.py"),
    r"evaluate|profile|verify": ("named alone", "tests/test_commands.py"),
}
"""Patterns of commands that the parser alone reads here: why, and the tests that run such ones."""
PROGRAMS = {
    r"make [a-z-]+": "installs an environment; its targets are there (tests/test_readme.py)",
    r"python3 -m venv .*": "makes an environment",
    r"(pip|npm|pkg) install .*": "downloads",
    r"(adb|ssh|ssh-copy-id) .*": "needs a phone or a board",
    r"flower-super\w+ .*": "needs a cluster",
    r"unzip kernels.zip .*": "on a device; tests/estimate/test_pack.py runs the archive",
    r"(\w+=\S+ )?python (benchmarks|examples)/\w+\.py.*": "runs for minutes; the file is there",
}
"""Patterns of commands of other programs."""


def documented() -> dict[str, set[str]]:
    """Commands of all blocks for a shell, and those of ours in running text, with their pages."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fence = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
        lines = [
            re.sub(r"(^|\s)#\s.*", "", line)
            for kind, block in fence.findall(text)
            if kind in ("sh", "bash", "console", "shell")
            for line in block.replace("\\\n", " ").splitlines()
        ]
        lines += re.findall(r"`(autocompress [^`]+)`", fence.sub("", text))
        for line in filter(str.strip, lines):
            found.setdefault(" ".join(line.split()), set()).add(str(page.relative_to(ROOT)))
    return found


DOCUMENTED = documented()
OURS = sorted(
    " ".join(shlex.split(line)[1:]) for line in DOCUMENTED if line.startswith("autocompress ")
)


def elsewhere(command: str) -> tuple[str, str] | None:
    return next((why for p, why in ELSEWHERE.items() if re.fullmatch(p, command)), None)


def test_every_documented_command_is_run_or_has_a_reason() -> None:
    """And no list names what the docs do not."""
    found = [c for c in OURS if (c in RUN) == (elsewhere(c) is not None)]
    assert not found, "neither run nor given a reason, or both"
    assert not RUN - set(OURS)
    others = [line for line in DOCUMENTED if not line.startswith("autocompress ")]
    assert not [o for o in others if not any(re.fullmatch(p, o) for p in PROGRAMS)]
    used = {p for p in ELSEWHERE if any(re.fullmatch(p, c) for c in OURS)}
    used |= {p for p in PROGRAMS if any(re.fullmatch(p, o) for o in others)}
    assert used == {*ELSEWHERE, *PROGRAMS}
    for command in OURS:
        why = elsewhere(command)
        named = rf"\b{command.split()[0]}\b"
        assert why is None or re.search(named, (ROOT / why[1]).read_text()), (command, why)


@pytest.mark.parametrize("command", [c for c in OURS if c not in RUN])
def test_the_parser_reads_what_is_run_elsewhere(command: str) -> None:
    """Its options, whatever it would do with them; words in capitals stand for what one has."""
    name, *arguments = command.partition(" > ")[0].split()
    root = typer.main.get_command(app)
    group = root.commands  # type: ignore[attr-defined]  # a click group
    if elsewhere(command) is None or not arguments:
        assert name in group
        return
    with_argument = [p.name for p in group[name].params if p.param_type_name == "argument"]
    if with_argument and arguments[0].startswith("-"):
        arguments.insert(0, "FILE")
    if arguments[-1] == "-o":
        arguments.append("FILE")
    group[name].make_context(name, arguments, resilient_parsing=False)


@pytest.mark.parametrize("line", [x for x in DOCUMENTED if "python " in x and ".py" in x])
def test_documented_scripts_are_there(line: str) -> None:
    for script in re.findall(r"((?:benchmarks|examples)/\S+\.py)", line):
        assert (ROOT / script).is_file()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study, its run, a recipe, files of models, and a browser that only notes."""
    folder = tmp_path_factory.mktemp("documented")
    few = {
        "match": "*",
        "prune_ratio": [0, 0.5],
        "weight_bits": [32, 8],
        "activation_bits": [32, 8],
    }
    study = study_of(3, name="mine", budget=["latency<=3x"], space={"rules": [few]})
    (folder / "mine.yaml").write_text(yaml.safe_dump(study))
    call(folder, "search mine.yaml")
    models = folder / "runs" / "mine" / "models"
    shutil.copy(models / "baseline.onnx", folder / "mine.onnx")
    shutil.copy(models / "best.onnx", folder / "theirs.onnx")
    shutil.copy(folder / "runs" / "mine" / "recipes" / "best.yaml", folder / "recipe.yaml")
    (folder / "programs").mkdir()
    (folder / "programs" / "xdg-open").write_text(f'#!/bin/sh\necho "$@" >> {folder}/opened\n')
    (folder / "programs" / "xdg-open").chmod(0o755)
    return folder


@pytest.mark.parametrize("command", sorted({INSTEAD.get(one, one) for one in RUN}))
def test_a_documented_command_runs(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{place / 'programs'}{os.pathsep}{os.environ['PATH']}")
    done = call(place, shlex.join(command.split()), check=None)
    assert done.returncode in ({0, 1, 2} if command.startswith(MAY_FAIL) else {0}), done.stderr
    assert "Traceback" not in done.stderr
    assert "Usage:" not in done.stderr, "the parser does not know it"
    if "-o " in command:
        assert (place / command.split("-o ")[1]).is_file()
    if "--open" in command:
        assert "report.html" in (place / "opened").read_text()


def test_a_run_is_costed_anew_with_a_table_of_another_device(place: Path) -> None:
    """The kernels are packed, run where the archive lies, and their times read."""
    call(place, "profile mine.yaml --export-kernels kernels.zip")
    shutil.unpack_archive(place / "kernels.zip", place / "kernels")
    subprocess.run([sys.executable, "kernels/run_kernels.py"], cwd=place, check=True)
    found = json.loads(call(place, "front runs/mine --target kernels/table.json --json").stdout)
    assert found["baseline"]["latency_ms"] > 0
    assert found["front"]

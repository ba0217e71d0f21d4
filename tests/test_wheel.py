"""What the wheel carries: an installed autocompress works from any folder, without a checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def built(kind: str, folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


def test_the_wheel_carries_studies_and_spaces(tmp_path: Path) -> None:
    wheel = built("wheel", tmp_path)
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    # the unpacked wheel stands before the checkout, and is asked from an unrelated folder
    code = (
        "from autocompress.run.study import load_study, shipped;"
        "import autocompress; print(autocompress.__file__);"
        "print(sorted(shipped('studies')), sorted(shipped('search_spaces')));"
        "print(load_study('quickstart').space_config().name);"
        "print(autocompress.__version__)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, names, space, version = asked.stdout.strip().splitlines()
    assert Path(where).is_relative_to(unpacked)
    for folder in ("studies", "search_spaces"):
        for path in (ROOT / folder).glob("*.yaml"):
            assert repr(path.stem) in names
    assert space == "joint"
    assert wheel.name.startswith(f"autocompress-{version}-")
    assert (unpacked / "autocompress" / "py.typed").is_file(), "its types are for others too"


def test_the_source_distribution_carries_all_that_builds_the_wheel(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "autocompress/cli.py"} <= names
    for folder in ("studies", "search_spaces"):
        assert {f"{folder}/{path.name}" for path in (ROOT / folder).glob("*.yaml")} <= names


@pytest.mark.slow  # downloads nothing where pip has a cache, and installs gigabytes
@pytest.mark.timeout(3000)
def test_the_quickstart_runs_from_the_wheel_in_a_bare_environment(tmp_path: Path) -> None:
    wheel = built("wheel", tmp_path)
    python = tmp_path / "bare" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True, timeout=1800)
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python.with_name("autocompress"), "search", "quickstart", "--json"],
        cwd=tmp_path,
        env={**clean, "AUTOCOMPRESS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["feasible"]
    assert found["unfinished"] == []
    assert (tmp_path / "runs" / "quickstart" / "report.html").stat().st_size < 6e6


def test_the_lowest_versions_are_those_of_the_project() -> None:
    """Of every library that it needs, and of the extras that tests take."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["onnx"], *extras["zoo"], *extras["dashboard"]]
    bounds = {}
    for requirement in map(Requirement, asked):
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        bounds[requirement.name] = Version(bound.version)
    text = (ROOT / "constraints/lowest.txt").read_text()
    lines = re.findall(r"^(\S+)==(\S+)$", text, re.MULTILINE)
    assert {name: Version(version) for name, version in lines} == bounds

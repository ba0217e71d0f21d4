"""Example packages: installed into folders of their own, where their own tests run too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent

#: tests that belong to an example package run where it is installed
collect_ignore_glob = ["*/tests/*"]

Called = Callable[..., str]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Called]:
    """Installs an example into a folder of its own; gives a Python that sees it."""

    def install(name: str) -> Called:
        folder = tmp_path_factory.mktemp(name)
        # pip writes beside the sources, so it gets a copy
        shutil.copytree(HERE / name, folder / "package")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        alone = ["--no-index", "--no-deps", "--no-build-isolation"]
        _call([*pip, *alone, "--target", "site", "./package"], folder)

        def called(*arguments: str) -> str:
            return _call([sys.executable, *arguments], folder, str(folder / "site"))

        return called

    return install


def _call(command: list[str], folder: Path, *paths: str) -> str:
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*paths, *before]))}
    env["AUTOCOMPRESS_LOCK_DIR"] = str(folder / "lock")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout

"""What the wheel carries: an installed autocompress works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_carries_studies_and_spaces(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
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

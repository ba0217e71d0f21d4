"""Where the environment with Flower is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from autocompress.errors import InputError

VARIABLE = "AUTOCOMPRESS_FEDERATED_PYTHON"
FOLDER = ".venv-federated"
_REMEDY = f"Make it with `make federated-env`, or name the Python of another one in {VARIABLE}."


def federated_python() -> Path:
    """The Python that has Flower.

    Raises:
        InputError: there is none, or it lacks something; the message has the remedy.
    """
    given = os.environ.get(VARIABLE)
    # beside the repository's own environment, or where the command was given
    beside = [Path(given)] if given else [_in(Path(sys.prefix).parent), _in(Path.cwd())]
    found = next((path for path in beside if path.is_file()), None)
    if found is None:
        raise InputError(
            "A federated study runs Flower in an environment of its own, which is not in "
            f"{' or '.join(map(str, beside))}. {_REMEDY}"
        )
    trial = subprocess.run(
        [str(found), "-c", "import flwr, ray, autocompress.federated.client"],
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode:
        reason = trial.stderr.strip().splitlines()[-1:] or ["it ends without a word"]
        raise InputError(f"{found} cannot run a federated study ({reason[0]}). {_REMEDY}")
    return found


def _in(folder: Path) -> Path:
    place = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    return folder / FOLDER / place

"""A run that is over, shown in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.errors import AutocompressError, InputError
from autocompress.mlflow.store import sync
from autocompress.policy.writing import scrubbed, without_password
from autocompress.track.folder import RunFolder
from autocompress.track.lock import writer_of


def track(run: str | Path, uri: str | None, experiment: str | None) -> dict[str, Any]:
    """Bring an MLflow store up to date with a run; repeating it changes nothing.

    Args:
        run: the run's folder.
        uri: tracking URI, or ``None`` for the SQLite file beside the run.
        experiment: its name; ``None`` for what the study says.

    Returns:
        What ``autocompress track --json`` prints.

    Raises:
        InputError: no run is there, a process is writing it and shows its trials itself, or no
            ``uri`` was given and the run names another store.
        AutocompressError: the store refuses; the run stays as it is.
    """
    folder = RunFolder.open(run)
    writer = writer_of(folder)
    if writer is not None:
        raise InputError(
            f"Process {writer} is writing {folder.root} and shows its trials itself. Wait for it."
        )
    try:
        found = sync(folder, uri=uri, experiment=experiment)
    except AutocompressError:
        raise
    except Exception as error:  # whatever a tracking store answers
        raise AutocompressError(
            f"MLflow does not take the run ({type(error).__name__}: "
            f"{scrubbed(str(error), uri)}). The run stays as it "
            "is; try again when the server answers."
        ) from None
    return {
        "run": str(folder.root),
        "uri": without_password(found.store.uri),
        "experiment": found.experiment,
        "trials": len(found.children),
    }

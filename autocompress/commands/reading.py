"""Commands that read finished runs: ``front`` and ``ui``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from autocompress.errors import InputError
from autocompress.report.tables import front_table, summary_json, verdict_table
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView


def front(run: str, target: str | None, *, quiet: bool) -> dict[str, Any]:
    """The front of a run, as it was measured or re-costed for another target."""
    view = RunView.load(run)
    if target is not None:
        from autocompress.run.retarget import retarget

        view = retarget(RunFolder.open(run), view, target, quiet=quiet)
    return summary_json(view)


def show_front(run: str, target: str | None, console: Console) -> None:
    """The front as a table, and the answer beside the simple ways."""
    view = RunView.load(run)
    if target is not None:
        from autocompress.run.retarget import retarget

        view = retarget(RunFolder.open(run), view, target, quiet=False)
    console.print(front_table(view))
    console.print(verdict_table(view))


def ui(runs: Path, host: str, port: int, *, as_json: bool) -> None:
    """Serve MLflow on the runs' store until Ctrl-C."""
    from autocompress.mlflow.server import serve

    if not runs.is_dir():
        raise InputError(
            f"There is no folder {runs}. Runs are written to ./runs by default; name "
            "the folder that holds yours."
        )
    serve(runs, port=port, host=host, as_json=as_json)

"""Commands that read finished runs: ``front`` and ``ui``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from autocompress.machine.output import answer
from autocompress.mlflow.server import serve
from autocompress.report.display import Display
from autocompress.report.html import write_report
from autocompress.report.tables import elsewhere, front_table, verdict_table
from autocompress.report.terminal import PlainConsole
from autocompress.run.dashboard import serve as serve_dashboard
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

if TYPE_CHECKING:
    from autocompress.mlflow.server import Links


def view_of(
    run: str,
    target: str | None,
    *,
    python: str | None = None,
    retry: bool = False,
    trust: bool,
    quiet: bool,
) -> RunView:
    """A run as it was measured, or re-costed for another target."""
    view = RunView.load(run)
    if target is None:
        return view
    from autocompress.run.retarget import retarget

    with Display(quiet) as shown:
        folder = RunFolder.open(run)
        asked = partial(retarget, folder, view, target, shown.preparing)
        return asked(python=python, retry=retry, trust=trust)[0]


def open_report(run: str, view: RunView) -> None:
    """Open the report of a run; that of another target is written now, beside its timings."""
    folder = RunFolder.open(run)
    page = folder.report
    if there := elsewhere(view):
        digest = hashlib.sha256("\0".join(there).encode()).hexdigest()[:12]
        page = write_report(folder, view, folder.root / "elsewhere" / f"report-{digest}.html")
    typer.launch(str(page.resolve()))


def show_front(view: RunView, console: Console) -> None:
    """The front as a table, and the answer beside the reference policies."""
    console.print(front_table(view))
    console.print(verdict_table(view))


def ui(runs: Path, host: str, port: int, *, dashboard: bool, opened: bool, as_json: bool) -> None:
    """Serve the runs' trials in MLflow, or in optuna-dashboard, until Ctrl-C."""
    if dashboard:

        def announce(url: str, shown: Sequence[str], skipped: Mapping[str, str]) -> None:
            _print_dashboard(url, shown, skipped, as_json)
            if opened:
                typer.launch(url)

        serve_dashboard(runs, announce, host=host, port=port)
        return

    def announce_pages(url: str, pages: Mapping[str, Links], skipped: Mapping[str, str]) -> None:
        (_print_links_json if as_json else _print_links)(url, pages, skipped)
        if opened and pages:
            latest = max(pages, key=lambda name: (runs / name / "trials.jsonl").stat().st_mtime)
            for page in (pages[latest].front, pages[latest].trials, pages[latest].charts):
                typer.launch(page)

    serve(runs, announce_pages, host=host, port=port)


def show_tracked(found: dict[str, Any], console: Console) -> None:
    """Where the trials are now."""
    console.print(
        f"{found['trials']} trials of {found['run']} are in MLflow at {found['uri']}, experiment "
        f"{found['experiment']}.",
        markup=False,
        soft_wrap=True,
    )


def _print_links_json(url: str, pages: Mapping[str, Links], skipped: Mapping[str, str]) -> None:
    found = {"url": url, "runs": {n: asdict(p) for n, p in pages.items()}, "skipped": skipped}
    answer(json.dumps(found))


def _print_links(url: str, pages: Mapping[str, Links], skipped: Mapping[str, str]) -> None:
    console = PlainConsole(soft_wrap=True)
    console.print(f"MLflow is up at [bold]{url}[/bold]. Ctrl-C ends it.")
    for name, page in pages.items():
        console.print(f"\n[bold]{escape(name)}[/bold]")
        for label, link in (
            ("front", page.front),
            ("trials", page.trials),
            ("charts", page.charts),
            ("study", page.study),
        ):
            console.print(f"  {label:8} {escape(link)}")
    _print_skipped(console, "was not brought up to date", skipped, empty=not pages)


def _print_dashboard(
    url: str, shown: Sequence[str], skipped: Mapping[str, str], as_json: bool
) -> None:
    if as_json:
        answer(json.dumps({"url": url, "runs": list(shown), "skipped": skipped}))
        return
    console = PlainConsole(soft_wrap=True)
    console.print(f"optuna-dashboard is up at [bold]{url}[/bold]. Ctrl-C ends it.")
    for name in shown:
        console.print(f"  {escape(name)}")
    _print_skipped(console, "is not shown", skipped, empty=not shown)


def _print_skipped(console: Console, what: str, skipped: Mapping[str, str], *, empty: bool) -> None:
    for name, reason in skipped.items():
        console.print(f"\n{escape(name)} {what}: {escape(reason)}")
    if empty and not skipped:
        console.print("There is no run in this folder yet.")

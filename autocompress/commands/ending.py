"""The end of a study in the terminal: front, verdict, why it ended, where everything lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from autocompress.controller.loop import StopReason
from autocompress.report.tables import front_table, verdict_table
from autocompress.report.verdict import verdict

if TYPE_CHECKING:
    from autocompress.run.session import Finished

_COLOURS = {"good": "green", "unsure": "yellow", "bad": "red"}

WHY_ENDED: dict[StopReason, str] = {
    "trials": "The search ended because all trials are done (`--trials`).",
    "timeout": "The search ended because its time was up (`--timeout`).",
    "interrupted": "The search was interrupted; `--resume` goes on.",
    "exhausted": "The search ended because it found no policy that it had not tried.",
    "rejections": "The search gave up: too many proposals in a row were over the budget by their "
    "estimate. Loosen the budget, give the space harder levels, use the sampler `guided`, or raise "
    "`search.max_rejections`.",
}
"""A sentence for each reason in ``SearchResult.stopped``."""


def show_result(done: Finished, console: Console) -> None:
    """Print it."""
    view, folder = done.view, done.folder
    console.print(front_table(view))
    console.print(verdict_table(view))
    found = verdict(view)
    console.print(f"[bold {_COLOURS[found.tone]}]{found.headline}[/]")
    for sentence in found.sentences:
        console.print(f"  {sentence}", highlight=False)
    console.print(f"[dim]{WHY_ENDED[done.stopped]}[/dim]", highlight=False)
    if view.best is not None:
        console.print(f"recipe  {folder.recipes / 'best.yaml'}", soft_wrap=True)
        file = folder.best_model()
        kept = file or "not kept; `autocompress apply` builds it from the recipe"
        console.print(f"model   {kept}", soft_wrap=True)
    console.print(f"report  {folder.report}", soft_wrap=True)
    if done.parts.study.tracking.mlflow:
        console.print(f"MLflow  autocompress ui {folder.root.parent}", soft_wrap=True)

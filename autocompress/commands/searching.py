"""What ``search`` prints: the dry run, or the end of a study and where everything lies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.markup import escape

from autocompress.errors import Interrupted
from autocompress.policy.writing import without_password
from autocompress.report.tables import front_table, verdict_table
from autocompress.report.verdict import verdict
from autocompress.track.folder import RunFolder

if TYPE_CHECKING:
    from autocompress.controller.loop import StopReason
    from autocompress.run.ending import EndedRun

_COLOURS = {"good": "green", "unsure": "yellow", "bad": "red"}

WHY_ENDED: dict[StopReason, str] = {
    "trials": "The search ended because all trials are done (`--trials`).",
    "timeout": "The search ended because its time was up.",
    "interrupted": "The search was interrupted; `--resume` goes on.",
    "device lost": "The device was lost; `--resume` goes on when it is there again.",
    "exhausted": "The search ended because it found no policy that it had not tried.",
    "rejections": "The search gave up: too many proposals in a row were over the budget by their "
    "estimate. Loosen the budget, give the space harder levels, use the sampler `guided`, or raise "
    "`search.max_rejections`.",
}
"""A sentence for each reason in ``SearchResult.stopped``."""


@contextmanager
def interruptible(root: Path) -> Iterator[None]:
    """Where a search is ended from outside before or after its trials, say what there is.

    Args:
        root: folder of the run.
    """
    try:
        yield
    except KeyboardInterrupt:
        if RunFolder(root).is_run:
            raise Interrupted(
                f"Interrupted. What is finished is kept in {root}; `--resume` goes on and writes "
                "the front, the report and the recipe."
            ) from None
        raise Interrupted("Interrupted before the first trial; nothing is kept.") from None


def give_up() -> None:
    """End the process from whatever thread, for its main one does not answer any more."""
    sys.stderr.write("The study cannot go on in this process; `--resume` goes on without it.\n")
    sys.stderr.flush()
    os._exit(1)


def show_result(done: EndedRun, console: Console) -> None:
    """The front, the verdict, why the search ended, and where everything lies."""
    view, folder = done.view, done.folder
    console.print(front_table(view))
    console.print(verdict_table(view))
    found = verdict(view)
    console.print(f"[bold {_COLOURS[found.tone]}]{escape(found.headline)}[/]")
    for sentence in found.sentences:
        console.print(f"  {escape(sentence)}")
    console.print(f"[dim]{WHY_ENDED[done.stopped]}[/dim]")
    for sentence in time_told(done.summary["time"]):
        console.print(f"[dim]{escape(sentence)}[/dim]")
    if view.best is not None:
        console.print(f"recipe  {escape(str(folder.recipes / 'best.yaml'))}", soft_wrap=True)
        file = folder.best_model()
        kept = file or "not kept; `autocompress apply` builds it from the recipe"
        console.print(f"model   {escape(str(kept))}", soft_wrap=True)
    console.print(f"report  {escape(str(folder.report))}", soft_wrap=True)
    tracking = done.parts.study.tracking
    if tracking.mlflow:
        place = without_password(tracking.uri) if tracking.uri else ""
        server = place if place.startswith("http") else f"autocompress ui {folder.root.parent}"
        console.print(f"MLflow  {escape(server)}", soft_wrap=True)


def time_told(found: Mapping[str, Any]) -> list[str]:
    """How a study kept to its time: sentences, none where it had no limit."""
    if found["budget_s"] is None:
        return []
    left = ", ".join(f"{count} of phase {phase}" for phase, count in found["left_out"].items())
    sentences = [f"The study took {found['used_s']:.0f} of its {found['budget_s']:.0f} s."]
    return sentences + ([f"Left out for lack of time: {left}."] if left else [])


def show_dry_run(found: dict[str, Any], console: Console) -> None:
    """The resolved study, its space, and whether its budget can be met."""
    console.print(yaml.safe_dump(found["study"], sort_keys=False), markup=False)
    console.print(f"{found['choices']} choices, about 10^{found['log10_policies']:.0f} policies")
    for name, key in (("most expensive", "most_expensive"), ("cheapest", "cheapest")):
        end = found[key]
        parts = [f"{end['macs'] / 1e6:.2f} M MACs"]
        if end["latency_ms"] is not None:
            parts.insert(0, f"{end['latency_ms']:.3f} ms")
        if end["size_bytes"] is not None:
            parts.append(f"{end['size_bytes'] / 1e3:.1f} kB")
        how = "measured" if end["measured"] else "estimated"
        console.print(f"{name}: {', '.join(parts)} ({how})")
    budget = ", ".join(found["budget"]) or "none"
    can = "can be met" if found["can_be_met"] else "cannot be met"
    if found["only_measured"] and len(found["only_measured"]) == len(found["budget"]):
        can = "known once it is measured"
    console.print(f"budget ({budget}): {can}")
    if found["only_measured"]:
        told = ", ".join(found["only_measured"])
        console.print(f"What no estimate tells, the search measures: {told}")

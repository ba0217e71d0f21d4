"""What the commands on recipes print: ``export``, ``apply`` and ``verify``."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autocompress.policy.costs import BY_NAME, said
from autocompress.results.metric import Metric


def show_export(found: dict[str, Any], console: Console) -> None:
    """Which trial, and what to do with its recipe."""
    recipe = escape(found["recipe"])
    console.print(
        f"Trial {found['trial']} -> [bold]{recipe}[/bold]\n"
        f"Apply it: autocompress apply {recipe} -o model.onnx"
    )


def show_applied(found: dict[str, Any], console: Console) -> None:
    """The file, and whether it is the recipe's own model."""
    console.print(f"[bold]{escape(found['model'])}[/bold]: {found['size_bytes'] / 1e3:,.1f} kB")
    if found["note"]:
        console.print(escape(found["note"]))


def show_verification(found: dict[str, Any], console: Console) -> None:
    """What was found beside what is claimed, and the verdict."""
    table = Table("", "found", "claimed")
    quality = Metric(**found["quality"])
    name = escape(quality.name)
    texts = [quality.text(found[f"{claimed}{quality.name}"]) for claimed in ("", "claimed_")]
    table.add_row(name, *texts)
    table.add_row(
        "latency / uncompressed",
        f"{found['latency_ratio']:.3f}",
        f"{found['claimed_latency_ratio']:.3f}",
    )
    for cost, share in found["limited"].items():
        power = -1 if BY_NAME[cost].inverse else 1  # of a throughput people say how much more it is
        row = (f"{share[side] ** power:.3f}" for side in ("found", "claimed"))
        table.add_row(f"{said(cost)} / uncompressed", *row)
    console.print(table)
    if not found["same_weights"]:
        console.print(f"These are other weights than the recipe's; {name} is not claimed for them.")
    if not found["same_data"]:
        console.print("These are other data than the recipe's; no quality is claimed for them.")
    for reason in found["reasons"]:
        console.print(f"[red]{escape(reason)}[/red]")
    for doubt in found["unsettled"]:
        console.print(f"[yellow]{escape(doubt)}[/yellow]")
    if not found["ok"]:
        console.print("[red]The recipe does not hold.[/red]")
    elif found["unsettled"]:
        console.print("[yellow]Nothing refutes the recipe, but not all of it is settled.[/yellow]")
    else:
        console.print("[green]The recipe holds.[/green]")

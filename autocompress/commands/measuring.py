"""Commands that measure files and runtimes: ``bench`` and ``targets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autocompress.errors import InputError
from autocompress.measure.latency import bench as measure_files
from autocompress.results.metric import Metric
from autocompress.targets import available_targets, get_target
from autocompress.targets.base import Availability
from autocompress.targets.config import named


def bench(
    file: Path, vs: Path | None, target: str, threads: int, batch: int, python: str | None
) -> dict[str, Any]:
    """Time one file, or two in turn."""
    for path in (file, vs):
        if path is not None and not path.is_file():
            raise InputError(f"There is no file {path}.")
    runtime = get_target({**named(target, python), "threads": threads, "batch": batch})
    runtime.reach()
    return measure_files(file, vs, runtime)


def show_bench(found: dict[str, Any], console: Console) -> None:
    """A table of one or two rows and the ratio."""
    energy = ["energy mJ"] if found["energy_mj"] is not None else []
    table = Table("file", "median ms", "IQR ms", "p99 ms", "size kB", "peak memory MB", *energy)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, prefix in (("file", ""), ("vs", "vs_")):
        if name in found:
            memory = found[prefix + "peak_memory_bytes"]
            p99, used = found[prefix + "latency_p99_ms"], found[prefix + "energy_mj"]
            table.add_row(
                escape(found[name]),
                f"{found[prefix + 'latency_ms']:.3f}",
                f"{found[prefix + 'iqr_ms']:.3f}",
                "–" if p99 is None else f"{p99:.3f}",
                f"{found[prefix + 'size_bytes'] / 1e3:,.1f}",
                "–" if memory is None else f"{memory / 1e6:,.1f}",
                *([] if used is None else [f"{used:.3g}"]),
            )
    console.print(table)
    if "vs" in found:
        console.print(
            f"{escape(found['file'])} takes [bold]{found['ratio']:.3f}[/bold] of the time of "
            f"{escape(found['vs'])} ({found['confidence']:.0%} interval {found['ratio_low']:.3f} "
            f"to {found['ratio_high']:.3f}): {found['verdict']}."
        )
    if found["noisy"]:
        console.print(
            "[yellow]The machine was too noisy to tell more closely; close other "
            "programs and try again.[/yellow]"
        )


def show_judgement(found: dict[str, Any], console: Console) -> None:
    """A table of the files beside the uncompressed model, then why each is not worth shipping."""
    quality = Metric(**found["quality"])
    named = f"{quality.title} on {found['split']}"
    heads = (named, "change", "ms", "of base", "size kB", "memory MB")
    table = Table("file", *heads, "worth shipping", caption="Intervals hold 95 %.")
    for column in table.columns[1:7]:
        column.justify = "right"
    _judged_row(table, quality, {"file": "uncompressed", **found["baseline"]}, "")
    for row in found["files"]:
        worth = "[green]yes[/green]" if row["worth_shipping"] else "[red]no[/red]"
        _judged_row(table, quality, row, worth)
    console.print(table)
    for row in found["files"]:
        for text in row["reasons"]:
            console.print(f"[bold]{escape(row['file'])}[/bold] is not: {escape(text)}")
        for text in row["notes"]:
            console.print(f"[yellow]{escape(row['file'])}: {escape(text)}[/yellow]")


def _judged_row(table: Table, quality: Metric, row: dict[str, Any], worth: str) -> None:
    """A file's figures, with intervals where it is set beside the uncompressed one."""
    ends = [row.get(f"{quality.name}_{end}") for end in ("low", "high")]
    low, high = (None if x is None else quality.gap(quality.shown(x)) for x in ends)
    memory = row.get("peak_memory_bytes")
    table.add_row(
        escape(row["file"]),
        quality.text(row.get(quality.name)),
        f"{low.split()[0]} to {high}" if low and high else "",
        f"{row['latency_ms']:.3f}" if "latency_ms" in row else "",
        f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}" if "ratio_low" in row else "",
        f"{row['size_bytes'] / 1e3:,.1f}" if "size_bytes" in row else "",
        "" if memory is None else f"{memory / 1e6:,.1f}",
        worth,
    )


def targets() -> dict[str, Any]:
    """What can be measured on this machine."""
    return {"targets": [found.as_dict() for found in available_targets()]}


def show_targets(found: dict[str, Any], console: Console) -> None:
    """A row per runtime and device."""
    table = Table(
        "runtime", "devices", "available", "version", "gains nothing by", "why not, or details"
    )
    for row in found["targets"]:
        mark = "[green]yes[/green]" if row["available"] else "[red]no[/red]"
        table.add_row(
            row["runtime"],
            ", ".join(row["devices"]),
            mark,
            row["version"],
            ", ".join(row["no_gain"]),
            escape(row["reason"] or _details(row)),
        )
    console.print(table)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in found["targets"]:
        for technique, reason in row["no_gain"].items():
            reasons.setdefault((technique, reason), []).append(row["runtime"])
    for (technique, reason), runtimes in reasons.items():
        console.print(f"[dim]{technique} on {', '.join(runtimes)}: {escape(reason)}[/dim]")


def _details(row: dict[str, Any]) -> str:
    """What a runtime tells beside its version, as ``key: value`` pairs."""
    rest = {k: v for k, v in row.items() if k not in Availability.__dataclass_fields__ and v}
    return "; ".join(
        f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in rest.items()
    )

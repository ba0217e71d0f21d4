"""Commands that measure files and runtimes: ``bench`` and ``targets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autocompress.errors import InputError


def bench(file: Path, vs: Path | None, target: str, threads: int, batch: int) -> dict[str, Any]:
    """Time one file, or two in turn."""
    from autocompress.measure.latency import bench as measure_files
    from autocompress.measure.targets import get_target

    for path in (file, vs):
        if path is not None and not path.is_file():
            raise InputError(f"There is no file {path}.")
    runtime = get_target({"runtime": target, "threads": threads, "batch": batch})
    return measure_files(runtime, file, vs).as_dict()


def show_bench(found: dict[str, Any], console: Console) -> None:
    """A table of one or two rows and the ratio."""
    table = Table("file", "median ms", "IQR ms", "runs", "size kB")
    for row in found["files"]:
        table.add_row(
            row["file"],
            f"{row['latency_ms']:.3f}",
            f"{row['iqr_ms']:.3f}",
            str(row["runs"]),
            f"{row['size_bytes'] / 1e3:,.1f}",
        )
    console.print(table)
    if found.get("ratio") is not None:
        low, high = found["ratio_interval"]
        console.print(
            f"{found['files'][0]['file']} takes [bold]{found['ratio']:.3f}[/bold] of the "
            f"time of {found['files'][1]['file']} (95 % interval {low:.3f} to "
            f"{high:.3f}; {1 / found['ratio']:.2f} times as fast)."
        )
    if found.get("noisy"):
        console.print(
            "[yellow]The machine was too noisy to tell more closely; close other "
            "programs and try again.[/yellow]"
        )


def targets() -> dict[str, Any]:
    """What can be measured on this machine."""
    from autocompress.measure.targets import available_targets

    return {"targets": [t if isinstance(t, dict) else t.as_dict() for t in available_targets()]}


def show_targets(found: dict[str, Any], console: Console) -> None:
    """A row per runtime and device."""
    table = Table("runtime", "device", "available", "version", "why not, or details")
    for row in found["targets"]:
        mark = "[green]yes[/green]" if row["available"] else "[red]no[/red]"
        table.add_row(
            row["runtime"],
            str(row.get("device", "")),
            mark,
            str(row.get("version") or ""),
            str(row.get("reason") or ""),
        )
    console.print(table)

"""What the commands print that look before searching: ``profile`` and ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autocompress.report.tables import epochs_text
from autocompress.results.metric import Metric

_COLOURS = {"good": "green", "warning": "yellow", "bad": "red"}


def show_findings(findings: Sequence[Mapping[str, str]], console: Console) -> None:
    """A row for each thing that timing depends on."""
    table = Table("", "what", "found", "what to do")
    for one in findings:
        state = f"[{_COLOURS[one['state']]}]{one['state']}[/]"
        table.add_row(state, one["name"], escape(one["found"]), escape(one["remedy"]))
    console.print(table)


def show_first(found: Mapping[str, Any], console: Console) -> None:
    """What a new study is about, and the commands that come next."""
    samples = ", ".join(f"{name} {count:,}" for name, count in found["samples"].items())
    said = [
        f"{found['study']}: {found['task']}, judged by {found['metric']}; {samples} samples; "
        f"{found['layers']} layers, {found['choices']} choices.",
        *found["notes"],
        found["cannot_prune"],
        "Next:",
        f"  autocompress search {found['study']} --dry-run    # can the budget be met?",
        f"  autocompress search {found['study']}",
    ]
    for sentence in filter(None, said):
        console.print(sentence, markup=False, soft_wrap=True)


def show_advice(found: Mapping[str, Any], path: Path | None, console: Console) -> None:
    """What was tried, what is advised, and what is left out."""
    table = Table("tried on the whole model", "latency", "interval", "size", "MACs", "divergence")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in found["tried"]:
        if one["why_not"]:
            table.add_row(one["way"], "-", "", "", "", "")
            continue
        table.add_row(
            one["way"],
            f"{one['latency_ratio']:.2f}x",
            f"{one['low']:.2f} to {one['high']:.2f}",
            f"{one['size_ratio']:.2f}x",
            f"{one['macs_ratio']:.2f}x",
            f"{one['divergence']:.2g}",
        )
    console.print(table)
    for title, sentences in (("advised", found["reasons"]), ("left out", found["left_out"])):
        for sentence in sentences:
            console.print(f"[bold]{title}[/bold] {escape(sentence)}")
    if path is None:
        console.print(yaml.safe_dump(found["space"], sort_keys=False), markup=False)
    else:
        console.print(f"{path} holds the space: `space: {path}` in a study.", markup=False)


def show_profile(found: dict[str, Any], console: Console) -> None:
    """A table of layers, then the groups."""
    base, quality = found["baseline"], Metric(**found["quality"])
    console.print(
        f"[bold]{found['study']}[/bold]: {quality.name} {quality.text(base[quality.name])}, "
        f"{base['latency_ms']:.3f} ms, {base['macs'] / 1e6:,.1f} M MACs, "
        f"{base['params'] / 1e3:,.0f} k params, {base['size_bytes'] / 1e3:,.0f} kB"
    )
    probes = list(dict.fromkeys(label for row in found["layers"] for label in row["kl"]))
    heads = (f"KL at {label}" for label in probes)
    table = Table("layer", "kind", "MACs M", "params k", "ms", "prunes with", *heads)
    for column in table.columns[2:5] + table.columns[6:]:
        column.justify = "right"
    for row in found["layers"]:
        time = row["latency_ms"]
        table.add_row(
            row["name"],
            row["kind"],
            f"{row['macs'] / 1e6:.2f}",
            f"{row['params'] / 1e3:.1f}",
            "" if time is None else f"{time:.3f}",
            row["group"] or "",
            *(_number(row["kl"].get(label)) for label in probes),
        )
    console.print(table)
    for note in found["notes"]:
        console.print(note, style="dim", markup=False)
    for reason, names in _left_alone(found["layers"]).items():
        console.print(f"{reason}: {', '.join(names)}", style="dim", markup=False)
    for group in found["groups"]:
        note = (
            " [dim](residual stream: pruned only with prune_residual)[/dim]"
            if group["residual"]
            else ""
        )
        console.print(
            f"{escape(group['name'])}: {group['channels']} channels of "
            f"{escape(', '.join(group['producers']))}{note}"
        )
    for left in found["left_alone"]:
        console.print(f"{left['group']} is not pruned: {left['reason']}", style="dim", markup=False)
    for sentence in (found["cannot_prune"], *found["never_read"]):
        if sentence:
            console.print(sentence, markup=False)
    counted = found["fvcore"]
    console.print(
        f"fvcore counts {counted['macs'] / 1e6:,.2f} M multiply-adds in these layers and "
        f"{counted['other_macs'] / 1e6:,.2f} M in others (norms, which the file folds away); "
        "not counted: "
        + (", ".join(f"{op} x{n}" for op, n in counted["uncounted"].items()) or "nothing")
        + "; never run: "
        + (", ".join(counted["uncalled"]) or "nothing")
        + ".",
    )
    if found["kernels"]:
        console.print(
            f"Kernels packed in {escape(found['kernels'])}; run its run_kernels.py on the device."
        )


def _left_alone(layers: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Layers that a technique leaves alone, by technique and reason."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        for technique, reason in layer["left_alone"].items():
            found.setdefault(f"no {technique}, as {reason}", []).append(layer["name"])
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def show_evaluation(found: dict[str, Any], console: Console) -> None:
    """The policy beside the uncompressed model."""
    trial, base = found["trial"], found["baseline"]
    quality = Metric(**found["quality"])
    name = quality.name
    table = Table("", name, "latency ms", "MACs M", "params k", "file kB")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, row in (("uncompressed", base), ("policy", trial)):
        table.add_row(
            label,
            quality.text(row[name]),
            f"{row['latency_ms']:.3f}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['params'] / 1e3:.1f}",
            f"{row['size_bytes'] / 1e3:.1f}",
        )
    console.print(table)
    console.print(
        f"{1 / trial['latency_ratio']:.2f} times as fast, {name} "
        f"{quality.gap(quality.shown(trial[name] - base[name]))}; "
        + ("within" if trial["feasible"] else "[yellow]over[/yellow]")
        + f" the budget ({found['budget']})."
    )
    console.print(_built(found))
    for problem in (*trial["problems"], *trial["notes"]):
        console.print(f"[yellow]{escape(problem)}[/yellow]")


def _built(found: dict[str, Any]) -> str:
    """Which of the builds was measured."""
    if found["build"] == "quick":
        return (
            "Built by the search's quick reconstruction; a study ends with a thorough one, which "
            "is measured without --quick."
        )
    trained = f", trained for {epochs_text(found['epochs'])}" if found["epochs"] else ""
    return f"Built as a study would hand it over (settings.finish){trained}."

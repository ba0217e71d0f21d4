"""What ``cascade`` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show_cascade(found: dict[str, Any], console: Console) -> None:
    """The stages, what was measured on test, and whether it bears out what was asked."""
    console.print(_stages(found))
    console.print(_latencies(found["latency"]))
    test, val, alone = found["test"], found["val"], found["alone"]
    console.print(
        f"On {test['inputs']} test inputs: accuracy {test['accuracy']:.2%} "
        f"({test['accuracy_low']:.2%} to {test['accuracy_high']:.2%}), uncompressed "
        f"{test['baseline_accuracy']:.2%}: {_lost(test['lost'])} ({100 * test['lost_low']:+.2f} to "
        f"{100 * test['lost_high']:+.2f}). On the {val['inputs']} inputs of val that thresholds "
        f"were chosen on: {_lost(val['lost'])}, at most {100 * val['largest_loss']:.2f} points "
        f"with {found['asked']['confidence']:.0%}.",
    )
    for name, word in (("as_good", "quickest member as accurate"), ("as_quick", "best as quick")):
        one = alone[name]
        if one is not None:
            console.print(
                f"The {word} alone: {one['label']}, {one['latency_ms']:.3f} ms, "
                f"{_lost(one['lost'])}.",
            )
    for label, reason in found["left_out"].items():
        console.print(f"{label} is left out: {reason}", style="dim", markup=False)
    if found["no_one_file"]:
        console.print(found["no_one_file"], style="dim", markup=False)
    kept = "bears out" if found["kept"] else "does not bear out"
    colour = "green" if found["kept"] else "red"
    console.print(f"[{colour}]Test {kept} what was asked.[/{colour}]")
    if found["no_gain"]:
        console.print(found["no_gain"], style="yellow", markup=False)
    runner = f"autocompress.runtime.Cascade({found['manifest']!r})"
    console.print(f"runner  {escape(runner)}", soft_wrap=True)
    if found["one_file"]:
        console.print(f"file    {escape(found['one_file'])} (batch 1)", soft_wrap=True)


def _stages(found: dict[str, Any]) -> Table:
    table = Table("stage", "member", "ms", "reached", "answered on test", "answers from")
    for column in table.columns[2:]:
        column.justify = "right"
    for place, stage in enumerate(found["stages"]):
        least = stage["threshold"]
        table.add_row(
            str(place + 1),
            escape(" and ".join(stage["members"])),
            f"{stage['latency_ms']:.3f}",
            f"{stage['reached']:.1%}",
            f"{found['test']['answered'][place]:.1%}",
            "all that is left" if least is None else f"{found['confidence']} {least:.4f}",
        )
    return table


def _latencies(latency: dict[str, Any]) -> Table:
    table = Table("", "mean ms", "p50", "p95", "p99", "worst", "mean of uncompressed")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, shown in (
        ("uncompressed", "uncompressed"),
        ("cascade", "cascade"),
        ("one_file", "cascade, one file"),
    ):
        if name in latency:
            one = latency[name]
            table.add_row(
                shown,
                *(f"{one[k]:.3f}" for k in ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "worst_ms")),
                f"{one['ratio']:.3f} ({one['ratio_low']:.3f} to {one['ratio_high']:.3f})",
            )
    return table


def _lost(fraction: float) -> str:
    return f"{abs(100 * fraction):.2f} points {'lost' if fraction >= 0 else 'won'}"

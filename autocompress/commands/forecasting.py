"""What ``front --budget`` and ``front --sweep`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from autocompress.commands.printing import printed
from autocompress.report.display import Display
from autocompress.results.metric import Metric

_BAR = 24
"""Widest bar of a sweep, in characters."""


def show(
    run: str,
    budget: Sequence[str],
    *,
    target: str | None,
    python: str | None,
    retry: bool = False,
    trust: bool,
    as_json: bool,
) -> None:
    """Answer for one budget, or where none is given for many."""
    from autocompress.run.forecast import forecast, sweep

    with Display(as_json) as shown:
        ask = partial(forecast, run, budget) if budget else partial(sweep, run)
        found = ask(shown.preparing, target=target, python=python, retry=retry, trust=trust)
    printed(found, as_json, lambda console: (_one if budget else _many)(found, console))


def _one(found: dict[str, Any], console: Console) -> None:
    quality, expected = Metric(**found["quality"]), found["expected"]
    unknown = found["only_measured"]
    foretold = ", ".join(limit for limit in found["budget"] if limit not in unknown)
    if unknown:
        console.print(
            f"Only measuring tells whether a policy is within {', '.join(unknown)}"
            f"{': what is expected leaves that out' if foretold else ''}."
        )
    if expected is None and (foretold or not unknown):
        console.print(f"No policy is expected to be within {foretold}.")
    elif expected is not None:
        console.print(
            f"At {foretold} expect {_expected(quality, expected, found['coverage'])}, before "
            f"training. Learned from {found['learned_from']} measured policies.",
        )
        console.print(f"policy   {found['policy_file']}", soft_wrap=True)
    measured = found["measured"]
    if measured is None:
        console.print("No measured policy is within it.")
    else:
        console.print(
            f"Measured: trial {measured['trial']} ({measured['phase']}), "
            f"{quality.text(measured[quality.name])}{_latency(measured)}.",
        )
    for command in found["commands"]:
        console.print(f"         {command}", soft_wrap=True, markup=False)


def _expected(quality: Metric, expected: Mapping[str, Any], coverage: float) -> str:
    own = expected[quality.name]
    text = f"{quality.title} {quality.text(own['value'])}"
    if own["low"] is None:
        return f"{text} (too few trials for an interval)"
    low, high = (quality.text(own[end]) for end in ("low", "high"))
    return f"{text} ({low} to {high} in {coverage:.0%} of cases)"


def _latency(measured: Mapping[str, Any]) -> str:
    return f", {measured['latency_ms']:.4g} ms" if "latency_ms" in measured else ""


def _many(found: dict[str, Any], console: Console) -> None:
    quality = Metric(**found["quality"])
    table = Table("budget", f"expected {quality.title}", "from", "to", "measured", "")
    for column in table.columns[1:5]:
        column.justify = "right"
    told = [row["expected"][quality.name]["value"] for row in found["sweep"] if row["expected"]]
    least, most = min(told, default=0.0), max(told, default=0.0)
    for row in found["sweep"]:
        expected, measured = row["expected"], row["measured"]
        own = (
            {"value": None, "low": None, "high": None}
            if expected is None
            else expected[quality.name]
        )
        value = own["value"]
        share = 0.0 if value is None or most <= least else (value - least) / (most - least)
        table.add_row(
            ", ".join(row["budget"]),
            *(quality.text(own[end]) for end in ("value", "low", "high")),
            quality.text(None if measured is None else measured[quality.name]),
            "" if value is None else "█" * (1 + round(share * (_BAR - 1))),
        )
    console.print(table)
    console.print(
        f"Expected before training, {found['coverage']:.0%} of what is measured between the two "
        f"ends; learned from {found['learned_from']} measured policies. The policies are in "
        f"{found['run']}/forecasts.",
    )

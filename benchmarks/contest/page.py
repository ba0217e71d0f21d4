"""From rows to the tables of the page."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.quality.score import Accuracy, paired
from contest.rows import Row, groups, unpacked

OURS = "autocompress"
TOLERANCE = 1.02
"""A file is within the budget up to this factor: what the same file's timings differ by."""
PARTS = ("tables", "settings")
"""Of the page, each between two comments."""


def within(row: Row) -> bool:
    """Whether a row's file keeps to its budget."""
    return bool(row["ratio"] <= row["latency"] * TOLERANCE)


def accuracy_of(row: Row) -> Accuracy:
    """A row's accuracy on the test split, sample by sample."""
    correct = unpacked(row["correct"], row["images"])
    return Accuracy(float(correct.mean()), 0.0, len(correct), correct)


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Those within the budget by accuracy, then those over it by latency, then those without."""
    measured = [row for row in rows if "ratio" in row]
    inside = sorted((r for r in measured if within(r)), key=lambda r: -r["test"])
    over = sorted((r for r in measured if not within(r)), key=lambda r: r["ratio"])
    return [*inside, *over, *(row for row in rows if "ratio" not in row)]


def gap(row: Row, ours: Row | None) -> str:
    """Points of accuracy that a row is ahead of ours, with its interval."""
    if ours is None or "ratio" not in ours or row["peer"] == OURS:
        return ""
    found = paired(accuracy_of(row), accuracy_of(ours))
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of one group's table."""
    ours = next((row for row in rows if row["peer"] == OURS), None)
    lines = [
        "| tool | test, % | minus ours, points [95 %] | latency | size, KB | integer layers | "
        "minutes | how |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ordered(rows):
        if "ratio" not in row:
            lines.append(f"| {row['peer']} | | | | | | | none: {row['reason']} |")
            continue
        over = "" if within(row) else " **over**"
        cells = [
            row["peer"],
            f"{100 * row['test']:.2f}",
            gap(row, ours),
            f"{row['ratio']:.3f}x{over}",
            f"{row['size_bytes'] / 1000:.0f}",
            f"{row['integer']} of {row['multiplying']}",
            f"{row['seconds'] / 60:.1f}",
            row["how"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def tables(rows: Sequence[Row]) -> str:
    """All groups, each with its heading."""
    parts = []
    for (network, latency, minutes), group in groups(rows).items():
        first = next((row for row in group if "base_test" in row), None)
        base = f" The uncompressed file: {100 * first['base_test']:.2f} %." if first else ""
        title = f"### {network}, {latency:g}x of the latency, {minutes:g} minutes"
        parts.append("\n".join([title, "", f"Test accuracy.{base}", "", *table(group)]))
    return "\n\n".join(parts)


def written(page: str, rows: Sequence[Row]) -> str:
    """A page with its tables replaced.

    Raises:
        ValueError: the page has no place for them.
    """
    for part, text in zip(PARTS, (tables(rows), settings(rows)), strict=True):
        begin, end = (f"<!-- {part}: {side} -->" for side in ("begin", "end"))
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"The page needs one line {begin!r} and one line {end!r}.")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"
    return page


def settings(rows: Sequence[Row]) -> str:
    """Each tool's version and settings, as its latest row tells them."""
    told = {row["peer"]: row for row in rows if "version" in row}
    lines = [f"| {peer} | {row['version']} | {row['settings']} |" for peer, row in told.items()]
    return "\n".join(["| tool | version | settings |", "|---|---|---|", *lines])

"""The rows of the leaderboard, and the search for a ratio: nothing here runs a model."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
KEY = ("network", "latency", "minutes", "peer")
"""What a row is of; a later row of the same takes the place of the earlier one."""


def key_of(row: Row) -> tuple[Any, ...]:
    """What a row is of."""
    return tuple(row[name] for name in KEY)


def load(path: Path) -> list[Row]:
    """All rows of a file, the latest of each kind, in the order of their first appearance.

    Args:
        path: one JSON object a line; a last line that was cut off is left out, a file that is not
            there has no rows.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    lines = path.read_text().split("\n") if path.exists() else []
    for line in lines[:-1]:  # behind the last newline stands nothing, or half a line
        if line:
            row = json.loads(line)
            rows[key_of(row)] = row
    return list(rows.values())


def append(path: Path, row: Row) -> None:
    """Add a row; half a line that an interruption left is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    kept = text[: text.rfind("\n") + 1]
    path.write_text(kept + json.dumps(row) + "\n")


def packed(correct: NDArray[np.bool_]) -> str:
    """Whether each sample was right, ``(N,)``, as text."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpacked(text: str, count: int) -> NDArray[np.bool_]:
    """The inverse of ``packed`` for ``count`` samples."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))
    return bits[:count].astype(bool)


def mildest(
    ratio_of: Callable[[float], float], aim: float, high: float, probes: int
) -> tuple[float, float]:
    """The smallest share to remove at which a latency is reached, by bisection.

    Args:
        ratio_of: from a share to remove in [0, ``high``] to latency / uncompressed latency; it is
            taken to fall.
        aim: largest latency ratio that is good enough.
        high: largest share.
        probes: calls of ``ratio_of``, at least 2.

    Returns:
        The share and its latency ratio; those of the quickest where nothing reaches the aim.
    """
    found = ratio_of(0.0)
    if found <= aim:
        return 0.0, found
    seen = [(found, 0.0), (ratio_of(high), high)]
    low = 0.0
    for _ in range(probes - 2):
        middle = (low + high) / 2
        seen.append((ratio_of(middle), middle))
        if seen[-1][0] <= aim:
            high = middle
        else:
            low = middle
    enough = [(share, ratio) for ratio, share in seen if ratio <= aim]
    ratio, share = min(seen)
    return min(enough, default=(share, ratio))


def affordable_epochs(seconds: float, step_s: float, steps_per_epoch: int) -> float:
    """Epochs that fit into some seconds, rounded down to whole steps.

    Args:
        seconds: that training may take.
        step_s: seconds of a step.
        steps_per_epoch: steps of an epoch.
    """
    return max(0, int(seconds / step_s)) / steps_per_epoch


def groups(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by network, latency and minutes, in this order."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r["network"], -r["latency"], r["minutes"])):
        found.setdefault(key_of(row)[:3], []).append(row)
    return found

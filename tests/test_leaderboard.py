"""The leaderboard's pure parts: rows that outlive an interruption, bisection, intervals, tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contest import page, rows
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

IMAGES = 1003  # no multiple of eight


def row(peer: str, correct: np.ndarray, ratio: float = 0.5, **more: Any) -> dict[str, Any]:
    """A measured row."""
    return {
        "network": "net",
        "latency": 0.5,
        "minutes": 3.0,
        "peer": peer,
        "seconds": 180.0,
        "ratio": ratio,
        "size_bytes": 2500,
        "integer": 2,
        "multiplying": 3,
        "how": "somehow",
        "version": "tool 1.0",
        "settings": "as it comes",
        "test": float(correct.mean()),
        "images": len(correct),
        "correct": rows.packed(correct),
        **more,
    }


def drawn(seed: int, rate: float) -> np.ndarray:
    return np.random.default_rng(seed).random(IMAGES) < rate


def test_which_samples_were_right_comes_back() -> None:
    correct = drawn(0, 0.7)
    assert (rows.unpacked(rows.packed(correct), IMAGES) == correct).all()


def test_rows_are_kept_and_the_later_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert rows.load(path) == []
    first, second = row("a", drawn(0, 0.7)), row("b", drawn(1, 0.7))
    for one in (first, second):
        rows.append(path, one)
    again = {**first, "ratio": 0.4}
    rows.append(path, again)
    assert rows.load(path) == [again, second]
    other = {**first, "minutes": 10.0}
    rows.append(path, other)
    assert rows.load(path) == [again, second, other]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_half_a_row_is_left_out_and_ended(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    first, second = row("a", drawn(0, 0.7)), row("b", drawn(1, 0.7))
    rows.append(path, first)
    whole = path.read_text()
    path.write_text(whole + (json.dumps(second) + "\n")[:-cut])
    assert rows.load(path) == [first]
    rows.append(path, second)
    assert path.read_text() == whole + json.dumps(second) + "\n"


@given(st.floats(0.01, 0.89), st.integers(2, 9))
def test_bisection_finds_the_mildest_share(threshold: float, probes: int) -> None:
    """Latency falls from 1 in a straight line; the aim is where it is at the threshold."""
    asked = []

    def ratio_of(share: float) -> float:
        asked.append(share)
        return 1 - share

    share, found = rows.mildest(ratio_of, 1 - threshold, 0.9, probes)
    assert len(asked) <= probes
    assert found == 1 - share
    assert threshold - 1e-9 <= share <= threshold + 0.9 / 2 ** (probes - 2) + 1e-9


def test_bisection_where_nothing_or_the_least_is_enough() -> None:
    assert rows.mildest(lambda share: 1 - share / 10, 0.5, 0.9, 6) == (0.9, pytest.approx(0.91))
    quickest = rows.mildest(lambda share: 0.6 + abs(share - 0.45), 0.5, 0.9, 6)
    assert quickest == (0.45, pytest.approx(0.6))
    assert rows.mildest(lambda share: 0.4 + abs(share - 0.45), 0.45, 0.9, 3)[0] == 0.45
    assert rows.mildest(lambda share: 0.4, 0.5, 0.9, 6) == (0.0, 0.4)


@given(st.floats(0, 100), st.floats(0.01, 2), st.integers(1, 400))
def test_epochs_that_fit(seconds: float, step_s: float, steps: int) -> None:
    taken = rows.affordable_epochs(seconds, step_s, steps) * steps
    assert taken == pytest.approx(round(taken))
    assert taken * step_s <= seconds + 1e-6
    assert (taken + 1) * step_s > seconds - 1e-6


def test_no_time_trains_nothing() -> None:
    assert rows.affordable_epochs(-3.0, 0.1, 10) == 0.0


def test_the_interval_of_a_difference() -> None:
    """Against the normal interval of paired proportions."""
    ours, other = drawn(1, 0.8), drawn(2, 0.75)
    text = page.gap(row("other", other), row(page.OURS, ours))
    difference, low, high = (float(part.strip("[], ")) for part in text.split())
    each = other.astype(float) - ours.astype(float)
    half = norm.ppf(0.975) * each.std() / math.sqrt(IMAGES)
    assert difference == pytest.approx(100 * each.mean(), abs=0.006)
    assert low == pytest.approx(100 * (each.mean() - half), abs=0.35)
    assert high == pytest.approx(100 * (each.mean() + half), abs=0.35)


def test_who_keeps_to_the_budget_comes_first() -> None:
    right = [drawn(seed, rate) for seed, rate in enumerate((0.9, 0.7, 0.8, 0.95))]
    found = page.ordered(
        [
            {"peer": "none", "reason": "cannot"},
            row("over", right[3], ratio=0.52),
            row("worse", right[1], ratio=0.505),
            row("better", right[2], ratio=0.3),
            row("more over", right[3], ratio=0.6),
        ]
    )
    assert [r["peer"] for r in found] == ["better", "worse", "over", "more over", "none"]


def test_the_page_holds_a_line_per_row_and_keeps_its_text() -> None:
    ours = row(page.OURS, drawn(1, 0.8), base_test=0.88)
    found = [ours, row("over", drawn(2, 0.9), ratio=0.7), {**ours, "minutes": 10.0}]
    failed = {k: ours[k] for k in rows.KEY} | {"peer": "broken", "reason": "does not install"}
    places = [f"<!-- {p}: begin -->\nold\n<!-- {p}: end -->\n" for p in page.PARTS]
    text = "before\n" + "between\n".join(places) + "after\n"
    once = page.written(text, [*found, failed])
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert "between\n" in once
    assert f"| {page.OURS} | tool 1.0 | as it comes |" in once
    assert once.count("### net, 0.5x of the latency") == 2
    assert "| over |" in once
    assert "0.700x **over**" in once
    assert "none: does not install" in once
    assert "88.00 %" in once
    assert page.written(once, [*found, failed]) == once
    with pytest.raises(ValueError):
        page.written("no place", found)

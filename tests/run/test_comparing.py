"""Claims of costs beside the latency: held to as shares of the uncompressed model's, and shown."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from autocompress.commands.recipes import show_verification
from autocompress.results.metric import ACCURACY, Measurement
from autocompress.run.comparing import compare_claims, limited_shares, unsettled_claims

HERE = Measurement({"accuracy": 0.9, "latency_ms": 2.0, "latency_p99_ms": 4.0, "sample_ms": 2.0})
THERE = Measurement({"accuracy": 0.9, "latency_ms": 8.0, "latency_p99_ms": 10.0})


def shown(found: dict[str, Any]) -> str:
    out = StringIO()
    show_verification(found, Console(file=out, width=100))
    return out.getvalue()


def reasons(p99_ms: float, limited: set[str]) -> list[str]:
    found = Measurement({"accuracy": 0.9, "latency_ms": 1.0, "latency_p99_ms": p99_ms})
    claimed = Measurement({"accuracy": 0.9, "latency_ms": 4.0, "latency_p99_ms": 5.0})
    return compare_claims(
        found, HERE, claimed, THERE, same_weights=True, same_data=True, limited=limited
    )


def test_a_claim_of_another_machine_is_held_to_as_a_share() -> None:
    """Half of the uncompressed model's is claimed, of which a quarter is tolerated on top."""
    assert reasons(2.49, {"latency_p99_ms"}) == []
    (why,) = reasons(2.51, {"latency_p99_ms"})
    assert "p99" in why
    assert "claimed 0.500" in why
    assert reasons(4.0, set()) == [], "what no budget limits is not claimed"


@pytest.mark.parametrize(("low", "refuted"), [(None, True), (0.59, True), (0.57, False)])
def test_a_latency_is_wrong_where_its_whole_interval_is(low: float | None, refuted: bool) -> None:
    """Half of the uncompressed model's is claimed, of which 15 % are tolerated: 0.575."""
    timing = {} if low is None else {"ratio": 0.7, "ratio_low": low, "ratio_high": 0.8}
    found = Measurement({"accuracy": 0.9, "latency_ms": 1.4}, context={"timing": timing})
    claimed = Measurement({"accuracy": 0.9, "latency_ms": 4.0})
    told = compare_claims(found, HERE, claimed, THERE, same_weights=True, same_data=True)
    assert bool(told) == refuted
    if refuted:
        (why,) = told
        assert "latency is 0.700" in why
        assert ("at least 0.590" in why) == (low is not None)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.57, 0.58, 0.7])
@pytest.mark.parametrize("below", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("above", [0.0, 0.01, 0.4])
def test_a_latency_is_refuted_or_borne_out_by_whole_intervals_alone(
    ratio: float, below: float, above: float
) -> None:
    """Half of the uncompressed model's is claimed, of which 15 % are tolerated: 0.575."""
    low, high = ratio - below, ratio + above
    timing = {"ratio": ratio, "ratio_low": low, "ratio_high": high} if below or above else {}
    found = Measurement({"accuracy": 0.9, "latency_ms": 2 * ratio}, context={"timing": timing})
    claimed = Measurement({"accuracy": 0.9, "latency_ms": 4.0})
    sides = (found, HERE, claimed, THERE)
    refuted = compare_claims(*sides, same_weights=True, same_data=True)
    doubts = unsettled_claims(*sides)
    assert bool(refuted) == (low > 0.575)
    assert (not refuted and not doubts) == (high <= 0.575)
    for doubt in doubts:
        assert f"between {low:.3f} and {high:.3f} of" in doubt
        assert "claimed 0.500" in doubt
    if not timing:
        assert doubts == [], "without an interval the ratio itself decides"


def test_what_one_side_does_not_tell_is_not_compared() -> None:
    asked = {"sample_ms", "latency_p99_ms", "peak_memory_bytes"}
    assert limited_shares(HERE, HERE, THERE, THERE, asked) == {"latency_p99_ms": (1.0, 1.0)}


@pytest.mark.parametrize(
    ("limited", "row"),
    [
        ({}, ""),
        ({"latency_p99_ms": {"found": 0.41, "claimed": 0.5}}, "p99.* 0.410 .* 0.500 "),
        ({"sample_ms": {"found": 0.4, "claimed": 0.5}}, "throughput.* 2.500 .* 2.000 "),
    ],
)
def test_the_table_shows_what_was_held_to(limited: dict[str, dict[str, float]], row: str) -> None:
    found = {
        "accuracy": 0.9,
        "claimed_accuracy": 0.9,
        "quality": ACCURACY.as_dict(),
        "latency_ratio": 0.3,
        "claimed_latency_ratio": 0.31,
        "limited": limited,
        "same_weights": True,
        "same_data": True,
        "reasons": [],
        "unsettled": [],
        "ok": True,
    }
    assert "The recipe holds." in shown(found)
    doubtful = shown({**found, "unsettled": ["latency [x] lies between"]})
    assert "latency [x] lies between" in doubtful
    assert "not all of it is settled" in doubtful
    assert "holds" not in doubtful
    rows = [line for line in shown(found).splitlines() if "uncompressed" in line]
    assert "latency / uncompressed" in rows[0]
    assert len(rows) == 1 + len(limited)
    assert re.search(row, rows[-1])

"""Keys that scripts read, beside the page that tells of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from finished_run import finished_run

from autocompress.policy.costs import EXTRA
from autocompress.report.tables import summary_json
from autocompress.track.view import RunView

PAGE = Path(__file__).parents[2] / "docs" / "tracking.md"
ELSEWHERE = {"cascades", "quality", "max_quality_drop", "target"}
"""Keys that this run has no reason for; runs that have one are in other tests."""


def documented(heading: str) -> set[str]:
    """Keys in the first column of the table that follows a line of the page."""
    _, told = PAGE.read_text(encoding="utf-8").split(f"{heading}\n\n")
    table = told.split("\n\n")[0].splitlines()[2:]
    return {key for row in table for key in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_all_keys_are_documented(tmp_path: Path) -> None:
    found = summary_json(RunView.load(finished_run(tmp_path / "run")))
    assert documented("print one object:") == set(found) | ELSEWHERE
    costs = {cost.name for cost in EXTRA}
    for trial in found["trials"]:
        assert documented("Of each trial:") == set(trial) - costs
    with pytest.raises(ValueError, match="unpack"):
        documented("a line that is not there")

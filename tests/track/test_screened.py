"""What was screened once is known to the sessions after it, if it still holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.results.screened import Screened
from autocompress.track.screened import ScreenedPolicies

MADE_WITH = {"weights": "a", "settings": {"seed": 0}}
KNOWN = {("p", 64): Screened(0.25, 0.01, 64), ("p", 128): Screened(0.5, 0.02, 128)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = ScreenedPolicies(tmp_path / "screened.jsonl", MADE_WITH)
    made.update(KNOWN)
    return tmp_path / "screened.jsonl"


def test_another_session_knows_the_same(path: Path) -> None:
    assert dict(ScreenedPolicies(path, dict(reversed(MADE_WITH.items())))) == KNOWN


def test_divergences_of_other_weights_or_settings_are_not_taken(path: Path) -> None:
    other = ScreenedPolicies(path, {**MADE_WITH, "settings": {"seed": 1}})
    assert not other
    other[("p", 64)] = Screened(3.0, 0.1, 64)
    assert dict(ScreenedPolicies(path, MADE_WITH)) == KNOWN


@pytest.mark.parametrize("back", range(1, 40, 3))
def test_a_torn_line_is_cut_off_and_the_next_one_is_whole(path: Path, back: int) -> None:
    path.write_bytes(path.read_bytes()[:-back])
    again = ScreenedPolicies(path, MADE_WITH)
    assert dict(again) == {("p", 64): KNOWN["p", 64]}
    again["q", 64] = Screened(1.0, 0.1, 64)
    assert set(ScreenedPolicies(path, MADE_WITH)) == {("p", 64), ("q", 64)}


def test_what_is_not_finite_is_looked_at_again(path: Path) -> None:
    made = ScreenedPolicies(path, MADE_WITH)
    made["blown up", 64] = Screened(math.nan, 0.0, 64)
    assert math.isnan(made["blown up", 64].kl)
    assert dict(ScreenedPolicies(path, MADE_WITH)) == KNOWN
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_file_is_named_with_the_remedy(path: Path) -> None:
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(InputError, match=r"screened.jsonl, line 1, .* Delete the file"):
        ScreenedPolicies(path, MADE_WITH)

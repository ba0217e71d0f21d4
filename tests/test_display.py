"""What the terminal shows while a search runs."""

from __future__ import annotations

import pytest

from autocompress.commands.display import SearchDisplay
from autocompress.controller.progress import SearchProgress


@pytest.mark.parametrize("waiting", [0.02, 0.4])
def test_the_display_says_when_timing_waits_for_the_machine(
    waiting: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with SearchDisplay(quiet=False) as display:
        display.update(SearchProgress("search", 3, 10, 0.9, 0.05, 60.0, waiting))
    shown = capsys.readouterr().err
    assert "best in budget 90.00%, hypervolume 0.05, 60 s left" in shown
    assert ("waiting for a quiet machine 40% of the time" in shown) == (waiting > 0.1)


def test_a_quiet_display_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchDisplay(quiet=True) as display:
        display.update(SearchProgress("search", 3, 10, None, 0.0, None))
    assert capsys.readouterr().err == ""

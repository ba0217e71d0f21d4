"""What the terminal shows while a search runs."""

from __future__ import annotations

import logging
import sys

import pytest

from autocompress.controller.progress import SearchProgress
from autocompress.report.display import Display, console
from autocompress.results.metric import Metric


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("waiting", [0.02, 0.4])
def test_the_display_says_when_timing_waits_for_the_machine(
    waiting: float, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display() as display:
        display.preparing("layer bank", 0.5)
        display.progressed(SearchProgress("search", 3, 10, 0.9, 0.05, 60.0, waiting))
        display.preparing("fine-tune", 0.5)  # the bars stay
    shown = capsys.readouterr().err
    assert "best in budget 90.00%, 60 s left, hypervolume 0.05" in shown
    assert ("waiting for a quiet machine 40% of the time" in shown) == (waiting > 0.1)
    assert "fine-tune" not in shown


def test_a_narrow_terminal_keeps_what_matters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    error = Metric("mean_absolute_error", "px", "minimize")
    with Display() as display:
        display.progressed(
            SearchProgress("references", 13, 200, 12.345, 0.05, 3600.0, 0.4, quality=error)
        )
    shown = capsys.readouterr().err
    assert "references" in shown
    assert "13/200" in shown
    assert "best mean_absolute_error in budget 12.3" in shown
    with Display() as display:
        display.progressed(SearchProgress("references", 13, 200, 0.9, 0.05, 3600.0, 0.4))
    assert "best in budget 90.00%, 3600 s left" in capsys.readouterr().err


@pytest.mark.parametrize(("said", "width"), [("40", 40), (None, 140), ("wide", 140)])
def test_a_pipe_is_as_wide_as_it_is_said_to_be(
    said: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    if said is not None:
        monkeypatch.setenv("COLUMNS", said)
    assert not sys.stdout.isatty()
    assert console().width == width


@pytest.mark.parametrize("silent", [False, True])
def test_a_quiet_display_shows_warnings_and_a_silent_one_nothing(
    capsys: pytest.CaptureFixture[str], silent: bool
) -> None:
    with Display(quiet=not silent, silent=silent) as display:
        display.preparing("layer bank", 0.5)
        display.progressed(SearchProgress("search", 3, 10, None, 0.0, None))
        logging.getLogger("autocompress.machine.lock").info("waiting")
        logging.getLogger("autocompress.mlflow").warning("MLflow is down")
    out, told = capsys.readouterr()
    assert out == ""
    assert told.split() == ([] if silent else ["MLflow", "is", "down"])


def test_what_the_library_logs_is_shown_and_only_meanwhile(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, lock = logging.getLogger("autocompress"), logging.getLogger("autocompress.machine.lock")
    before = (root.level, list(root.handlers))
    with Display() as display:
        display.preparing("latency table", 0.0)
        lock.info("waiting for [process 7], which times something, for %d s", 12)
        lock.debug("still waiting")
    assert (root.level, root.handlers) == before
    lock.info("afterwards")
    shown = capsys.readouterr()
    assert "waiting for [process 7], which times something, for 12 s" in shown.err
    assert "still waiting" not in shown.err
    assert "afterwards" not in shown.err
    assert shown.out == ""

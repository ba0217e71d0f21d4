"""What disturbs measuring is found, and what to do is said."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lock_processes import TIMING, Other

from autocompress.machine import doctor
from autocompress.machine.doctor import Finding, examine, spread_of


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


@pytest.mark.parametrize(
    ("spread", "state"), [(0.01, "good"), (0.1, "warning"), (0.5, "bad"), (3.0, "bad")]
)
def test_unsteady_work_is_told_by_its_percentiles(spread: float, state: str) -> None:
    draw = np.random.default_rng(0)
    times = 5.0 * (1 + spread * draw.uniform(-0.5, 0.5, 500) / 0.8)
    low, middle, high = np.percentile(times, [10, 50, 90])
    found = spread_of(list(times))
    assert found.state == state
    said = float(re.findall(r"([\d.]+)%", found.found)[0])
    assert said == pytest.approx(100 * (high - low) / middle, rel=0.05, abs=0.6)
    assert bool(found.remedy) == (state != "good")


@pytest.mark.parametrize(("load", "state"), [(0.1, "good"), (2.0, "warning"), (30.0, "bad")])
def test_other_work_is_told(monkeypatch: pytest.MonkeyPatch, load: float, state: str) -> None:
    monkeypatch.setattr(doctor, "load_average", lambda: load)
    facts = {"cores": 2, "usable_cores": 2, "cpu": "x", "governor": "powersave"}
    monkeypatch.setattr(doctor, "machine_facts", lambda: facts)
    ticks = itertools.count()
    found = examine(0.0, clock=lambda: next(ticks) * 1e-3)
    assert states(found)["other work"] == state
    assert states(found)["steadiness"] == "good"  # every piece took one tick
    (governor,) = [f for f in found if f.name == "frequency"]
    assert (governor.state, "performance" in governor.remedy) == ("warning", True)
    assert all(f.remedy for f in found if f.state != "good")


def test_a_battery_and_heat_are_told(tmp_path: Path) -> None:
    supply, zone = tmp_path / "class/power_supply/AC", tmp_path / "class/thermal/thermal_zone0"
    for folder in (supply, zone):
        folder.mkdir(parents=True)
    (supply / "type").write_text("Mains\n")
    (supply / "online").write_text("0\n")
    (zone / "temp").write_text("91000\n")
    found = states(list(doctor._power(tmp_path)))
    assert found == {"power": "warning", "temperature": "warning"}
    (supply / "online").write_text("1\n")
    (zone / "temp").write_text("41000\n")
    assert states(list(doctor._power(tmp_path))) == {"temperature": "good"}


def test_a_lock_that_cannot_be_written_is_bad_and_the_command_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "autocompress", "doctor", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "AUTOCOMPRESS_LOCK_DIR": str(tmp_path / "file" / "lock")},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found["ok"]
    (lock,) = [f for f in found["findings"] if f["name"] == "timing lock"]
    assert lock["state"] == "bad"
    assert "AUTOCOMPRESS_LOCK_DIR" in lock["remedy"]


def test_a_lock_that_another_process_holds_is_told_at_once(start: Callable[[str], Other]) -> None:
    other = start(TIMING)
    assert other.reaches("holding")
    found = doctor._lock()
    assert found.state == "warning"
    assert str(other.process.pid) in found.found

"""Energy by the counters of processor packages and by a board's own program, both made here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from autocompress.errors import MeasurementError
from autocompress.machine import energy
from autocompress.machine.energy import Rapl, Tegrastats, energy_meter

_LINE = (
    "11-29-2026 10:00:00 RAM 2448/7620MB (lfb 4x1MB) CPU [1%@729,off] GR3D_FREQ 0% cpu@45.9C "
    "VDD_IN {}mW/4800mW VDD_CPU_GPU_CV 480mW/480mW VDD_SOC 1425mW/1425mW"
)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two packages, one of them with a part of its own, which counts in it already."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = []
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        folder = tmp_path / "powercap" / name
        folder.mkdir(parents=True)
        (folder / "energy_uj").write_text("1000000\n")
        (folder / "max_energy_range_uj").write_text("5000000\n")
        found.append(folder)
    return found


def test_packages_count_once_and_their_counters_begin_anew(packages: list[Path]) -> None:
    meter = energy_meter(packages[0].parent)
    assert isinstance(meter, Rapl)
    assert [path.name for path in meter.counters] == ["intel-rapl:0", "intel-rapl:1"]

    def work() -> None:
        (packages[0] / "energy_uj").write_text("3500000\n")
        (packages[1] / "energy_uj").write_text("500000\n")  # past its largest value
        (packages[2] / "energy_uj").write_text("4000000\n")

    assert meter.joules(work) == pytest.approx(2.5 + 4.5)


def test_a_machine_without_counters_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no counters of energy" in str(energy_meter(tmp_path / "absent"))


def test_counters_of_root_alone_say_how_to_open_them(
    packages: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: Path) -> int:
        raise PermissionError(file)

    monkeypatch.setattr(energy, "_number", refused)
    assert "sudo chmod a+r" in str(energy_meter(packages[0].parent))


def test_a_boards_power_is_averaged_while_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tegrastats"
    lines = "\n".join(f"echo '{_LINE.format(mw)}'" for mw in (4000, 6000))
    program.write_text(
        f"#!/bin/sh\ntest \"$1 $2\" = '--interval 50' || exit 1\n{lines}\nexec sleep 60\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    meter = energy_meter()
    assert isinstance(meter, Tegrastats)
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(ticks))
    assert meter.joules(lambda: time.sleep(1.0)) == pytest.approx(5.0 * 2.0)


def test_a_board_that_tells_no_input_power_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\necho RAM 1/2MB\n")
    program.chmod(0o755)
    with pytest.raises(MeasurementError, match="no power"):
        Tegrastats(str(program)).joules(lambda: None)

"""Energy that this machine says it takes: RAPL on PCs, ``tegrastats`` on Jetsons. Packed."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import MeasurementError

RAPL = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"(intel|amd)-rapl:\d+")
_RAIL = re.compile(r"\b(?:VDD_IN|POM_5V_IN|VIN_SYS_5V0) (\d+)(?:mW)?/\d+")
"""The board's whole input in a line of ``tegrastats``, in mW now and on average."""
_EVERY_MS = 50


@dataclass(frozen=True)
class Rapl:
    """Counters of processor packages, in microjoules; they begin anew at their largest value.

    Args:
        counters: folders of the packages.
    """

    counters: tuple[Path, ...]

    def joules(self, work: Callable[[], object]) -> float:
        """Energy of all packages while something is done, what idles included."""
        before = [_number(c / "energy_uj") for c in self.counters]
        work()
        after = [_number(c / "energy_uj") for c in self.counters]
        ranges = [_number(c / "max_energy_range_uj") for c in self.counters]
        spent = (
            b - a if b >= a else b - a + most
            for a, b, most in zip(before, after, ranges, strict=True)
        )
        return sum(spent) / 1e6


@dataclass(frozen=True)
class Tegrastats:
    """The board's input power, as ``tegrastats`` samples it.

    Args:
        program: where it is.
    """

    program: str

    def joules(self, work: Callable[[], object]) -> float:
        """Mean power while something is done, times its seconds.

        Raises:
            MeasurementError: it tells no input power.
        """
        command = [self.program, "--interval", str(_EVERY_MS)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sampling:
            begin = time.perf_counter()
            try:
                work()
            finally:
                seconds = time.perf_counter() - begin
                sampling.kill()  # who started us may have it ignore SIGTERM; it has nothing to tidy
            text, _ = sampling.communicate()
        found = [int(match[1]) for match in map(_RAIL.search, text.splitlines()) if match]
        if not found:
            raise MeasurementError("tegrastats tells no power of the board's input.")
        return sum(found) / len(found) / 1e3 * seconds


def energy_meter(rapl: Path = RAPL) -> Rapl | Tegrastats | str:
    """What tells energy on this machine, or why nothing does and what helps.

    Args:
        rapl: where the kernel shows the packages' counters.
    """
    program = shutil.which("tegrastats")
    if program is not None:
        return Tegrastats(program)
    packages = sorted(p for p in rapl.glob("*-rapl:*") if _PACKAGE.fullmatch(p.name))
    if not packages:
        return (
            f"it has no counters of energy (no packages in {rapl}, no tegrastats); virtual "
            "machines show none. Measure on the machine itself, or on a board by "
            "`target: {device: ssh://...}`"
        )
    try:
        _number(packages[0] / "energy_uj")
    except PermissionError:
        return (
            "its counters of energy may be read by root alone: `sudo chmod a+r "
            f"{rapl}/*-rapl:*/energy_uj`, until the next start"
        )
    except (OSError, ValueError) as error:
        return f"its counters of energy cannot be read: {error}"
    return Rapl(tuple(packages))


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))

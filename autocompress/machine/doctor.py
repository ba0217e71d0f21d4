"""What on this machine will disturb measuring, and how to mend it."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autocompress.errors import AutocompressError
from autocompress.machine.facts import load_average, machine_facts
from autocompress.machine.lock import lock_folder, who_times

_SPREAD, _WIDE_SPREAD = 0.05, 0.15
"""Of the time of equal work between the tenth and the ninetieth percentile: noticed, and bad."""
_LOAD = 0.3
"""Runnable processes per core that a quiet machine has at most."""
_FREE_MEMORY, _FREE_DISK = 2 << 30, 5 << 30
_SYSTEM = Path("/sys")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: of it, a few words.
        state: ``good``, ``warning`` (measures less precisely, or more slowly) or ``bad``.
        found: what it is like here.
        remedy: what to do, where something can be done.
    """

    name: str
    state: Literal["good", "warning", "bad"]
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def examine(seconds: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> list[Finding]:
    """Look at everything that timing depends on.

    Args:
        seconds: of work that is timed, to see how far equal work takes equal time.
        clock: in seconds.
    """
    return [
        *_others(load_average(), int(machine_facts()["usable_cores"])),
        *_cores(),
        *_governor(machine_facts()["governor"]),
        *_power(_SYSTEM),
        spread_of(_repeated(seconds, clock)),
        _lock(),
        *_memory(_text(Path("/proc/meminfo"))),
        *_disk(),
        _instructions(_text(Path("/proc/cpuinfo"))),
    ]


def _others(load: float | None, cores: int) -> Iterator[Finding]:
    if load is None:
        return
    on = "1 core" if cores == 1 else f"{cores} cores"
    found = f"{load:.1f} runnable processes on {on} in the last minute"
    quiet = load <= max(0.5, _LOAD * cores)
    yield Finding(
        "other work",
        "good" if quiet else "warning" if load <= 1.5 * cores else "bad",
        found,
        ""
        if quiet
        else "End other work, or leave it: timings wait for quiet moments, and a study takes "
        "longer. Latency is measured beside the uncompressed model, so that ratios hold.",
    )


def _cores() -> Iterator[Finding]:
    facts = machine_facts()
    have, may = int(facts["cores"]), int(facts["usable_cores"])
    found = f"{may} of {have} usable, {facts['cpu']}"
    if may < have:
        yield Finding(
            "cores",
            "warning",
            found,
            "A container or an affinity mask holds the rest back; others may use them, and share "
            "caches and frequency with you.",
        )
    else:
        yield Finding("cores", "good", found)


def _governor(governor: str | None) -> Iterator[Finding]:
    if governor is None:
        return
    steady = governor == "performance"
    yield Finding(
        "frequency",
        "good" if steady else "warning",
        f"governor {governor!r}",
        "" if steady else "sudo cpupower frequency-set --governor performance",
    )


def _power(system: Path) -> Iterator[Finding]:
    """Whether a charger is plugged in, and how hot the processor is, where the system tells."""
    for supply in sorted((system / "class/power_supply").glob("*/online")):
        if _text(supply.with_name("type")).strip() == "Mains" and _text(supply).strip() == "0":
            yield Finding("power", "warning", "runs on its battery", "Plug the charger in.")
    heat = [
        int(text) / 1000
        for zone in (system / "class/thermal").glob("thermal_zone*/temp")
        if (text := _text(zone).strip()).isdigit()
    ]
    if heat:
        hot = max(heat) >= 85
        yield Finding(
            "temperature",
            "warning" if hot else "good",
            f"{max(heat):.0f} °C at most",
            "It slows down when it is hot: cool it, or let it rest." if hot else "",
        )


def _repeated(seconds: float, clock: Callable[[], float]) -> list[float]:
    """Milliseconds of the same work, again and again, some milliseconds each."""
    found: list[float] = []
    end = clock() + seconds
    while clock() < end or len(found) < 10:
        start = clock()
        total = 0
        for number in range(40_000):
            total += number & 7
        found.append(1000 * (clock() - start))
    return found


def spread_of(milliseconds: list[float]) -> Finding:
    """How far equal work takes equal time.

    Args:
        milliseconds: of the same work, ten times at least.
    """
    tenths = statistics.quantiles(milliseconds, n=10)
    spread = (tenths[-1] - tenths[0]) / tenths[4]
    if spread <= _SPREAD:
        return Finding("steadiness", "good", f"equal work differs by {spread:.1%}")
    return Finding(
        "steadiness",
        "warning" if spread <= _WIDE_SPREAD else "bad",
        f"equal work differs by {spread:.0%} between its tenth and its ninetieth percentile",
        "End other work, keep the frequency steady, or measure at another hour. What was disturbed "
        "is measured again, and marked where it stayed so.",
    )


def _lock() -> Finding:
    try:
        holder = who_times()
    except AutocompressError as error:
        return Finding(
            "timing lock", "bad", str(error), "Set AUTOCOMPRESS_LOCK_DIR to a folder of yours."
        )
    if holder:
        return Finding("timing lock", "warning", f"held by {holder}", "Wait for its end.")
    return Finding("timing lock", "good", f"free, in {lock_folder()}")


def _memory(text: str) -> Iterator[Finding]:
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and rest.split() and rest.split()[0].isdigit():
            free = 1024 * int(rest.split()[0])
            enough = free >= _FREE_MEMORY
            yield Finding(
                "memory",
                "good" if enough else "warning",
                f"{free / 2**30:.1f} GiB available",
                "" if enough else "End other programs, or give `data.memory` in the study.",
            )


def _disk() -> Iterator[Finding]:
    for what, place in (("temporary folder", tempfile.gettempdir()), ("working folder", ".")):
        free = shutil.disk_usage(place).free
        enough = free >= _FREE_DISK and os.access(place, os.W_OK)
        yield Finding(
            what,
            "good" if enough else "warning",
            f"{free / 2**30:.1f} GiB free" + ("" if os.access(place, os.W_OK) else ", read-only"),
            "" if enough else "Make room, or choose another: TMPDIR, --out, AUTOCOMPRESS_CACHE.",
        )


def _instructions(text: str) -> Finding:
    """Whether the processor multiplies 8-bit integers faster than floats."""
    flags = {w for x in text.splitlines() if x.startswith(("flags", "Features")) for w in x.split()}
    found = sorted(
        flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "avx512_bf16"}
    )
    if found:
        return Finding("8-bit instructions", "good", ", ".join(found))
    if not flags:
        return Finding("8-bit instructions", "good", "the system does not tell; `advise` measures")
    return Finding(
        "8-bit instructions",
        "warning",
        "none that the system names",
        "Eight bits gain less time here than on newer processors; size and memory stay.",
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

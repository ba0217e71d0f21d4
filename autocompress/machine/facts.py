"""Facts about the machine that a timing was taken on."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any


@cache
def machine_facts() -> dict[str, Any]:
    """What does not change while a process runs: processor, cores, memory, system, versions."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "memory_bytes": _memory(),
        "governor": _governor(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Cores that this process may keep busy, as far as the system and a container's quota allow."""
    given = len(cores()) or os.cpu_count() or 1
    return max(1, min(given, math.ceil(_quota(_GROUPS, _MOUNTED))))


def cores() -> set[int]:
    """Numbers of the cores that this process may run on; empty where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


_GROUPS, _MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def _quota(groups: Path, mounted: Path) -> float:
    """Cores' worth of time that control groups leave to this process; infinite without a limit.

    Args:
        groups: the file that lists this process's groups, of version 1 or 2.
        mounted: where they are mounted. A container may see its own group as the topmost one.
    """
    least = float(sys.maxsize)
    for line in _text(groups).splitlines():
        _, kinds, path = (*line.split(":", 2), "", "")[:3]
        if kinds and "cpu" not in kinds.split(","):
            continue
        top = mounted / "cpu" if kinds else mounted
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if kinds else ("cpu.max",)
            found = [word for name in names for word in _text(folder / name).split()]
            if len(found) == 2 and all(word.isdigit() and int(word) for word in found):
                least = min(least, int(found[0]) / int(found[1]))
    return least


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


_share: int | None = None


def take_share(cores: int) -> None:
    """Keep no more cores busy from now on: this process is one of several workers."""
    global _share
    _share = cores


def cores_to_use() -> int:
    """Cores that this process may keep busy: all that it may run on, or its share of them."""
    return usable_cores() if _share is None else max(1, min(_share, usable_cores()))


_SYSTEM = Path("/sys")


def machine_state() -> dict[str, Any]:
    """What changes while a process runs, as far as the system tells: temperatures, frequencies.

    Returns:
        ``temperature_c`` (the hottest zone), ``frequency_mhz`` (lowest and highest of the cores
        now) and ``governor``; what the system does not tell is left out.
    """
    zones = _numbers(_SYSTEM.glob("class/thermal/thermal_zone*/temp"))
    clocks = _numbers(_SYSTEM.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    found = {
        "temperature_c": max(zones) / 1e3 if zones else None,
        "frequency_mhz": [min(clocks) / 1e3, max(clocks) / 1e3] if clocks else None,
        "governor": _governor(),
    }
    return {name: value for name, value in found.items() if value is not None}


def _numbers(files: Iterable[Path]) -> list[int]:
    """What files with one number each hold; those that cannot be read are left out."""
    texts = [_text(file).strip() for file in files]
    return [int(text) for text in texts if text.lstrip("-").isdigit()]


def load_average() -> float | None:
    """Runnable processes of the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def machine_id() -> str:
    """Digest of what makes timings comparable: processor, cores and system; for cache keys."""
    facts = machine_facts()
    parts = [str(facts[k]) for k in ("cpu", "usable_cores", "architecture", "governor")]
    return hashlib.sha256("|".join([*parts, platform.node()]).encode()).hexdigest()[:12]


def _cpu_model() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _governor() -> str | None:
    return _text(_SYSTEM / "devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def _memory() -> int | None:
    if sys.platform == "win32" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

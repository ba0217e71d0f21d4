"""Facts about the machine that a timing was taken on."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
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
    """Cores that this process may run on."""
    return len(cores()) or os.cpu_count() or 1


def cores() -> set[int]:
    """Numbers of the cores that this process may run on; empty where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


_share: int | None = None


def take_share(cores: int) -> None:
    """Keep no more cores busy from now on: this process is one of several workers."""
    global _share
    _share = cores


def cores_to_use() -> int:
    """Cores that this process may keep busy: all that it may run on, or its share of them."""
    return usable_cores() if _share is None else max(1, min(_share, usable_cores()))


def load_average() -> float | None:
    """Runnable processes of the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def machine_id() -> str:
    """Digest of what makes timings comparable: processor, cores and system; for cache keys."""
    facts = machine_facts()
    parts = [str(facts[k]) for k in ("cpu", "usable_cores", "architecture", "governor")]
    return hashlib.sha256("|".join([*parts, platform.node()]).encode()).hexdigest()[:12]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _governor() -> str | None:
    file = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def _memory() -> int | None:
    if sys.platform == "win32" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

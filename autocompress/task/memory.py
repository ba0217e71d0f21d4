"""How much memory data may take, and how much of it is taken."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import InputError

VARIABLE = "AUTOCOMPRESS_DATA_MEMORY"
"""Environment variable that sets the budget, e.g. ``2GB``."""

SHARE = 4
"""By default data may take this part of what is available: a quarter."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*")


@dataclass
class Memory:
    """A budget that the splits of one data set share.

    Args:
        limit: bytes.
        taken: bytes of decoded samples that are held.
    """

    limit: int
    taken: int = 0

    @classmethod
    def of(cls, size: str | int | None = None) -> Memory:
        """A budget of so many bytes (``"2GB"``); ``None`` asks the environment, then the machine.

        Raises:
            InputError: no size.
        """
        asked = size if size is not None else os.environ.get(VARIABLE)
        return cls(available() // SHARE if asked is None else read_size(asked))

    def reserve(self, count: int) -> bool:
        """Take so many bytes, if they are left."""
        if self.taken + count > self.limit:
            return False
        self.taken += count
        return True


def read_size(size: str | int) -> int:
    """Bytes of ``2GB``, ``500 MB``, ``1000000``.

    Raises:
        InputError: no size.
    """
    if isinstance(size, int):
        return size
    found = _SIZE.fullmatch(size)
    if found is None or found.group(2).lower() not in _UNITS:
        raise InputError(f"A memory budget reads like '2GB' or '500MB', got {size!r}.")
    return int(float(found.group(1)) * _UNITS[found.group(2).lower()])


def available() -> int:
    """Bytes that this process could take now; what a container allows counts."""
    found = [_free_memory()]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        top, now = _number(limit), _number(used)
        if top is not None and now is not None:
            found.append(max(0, top - now))
    return min(found)


def _free_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux: half of what is built in is a fair guess
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return 4 * 10**9


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None

"""Names of the kernels in a file of many, and their times in its profile.

Packed for other devices; loads nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

_NAME = re.compile(r"k(\d{5})")


def kernel_name(place: int) -> str:
    """Of a kernel's node and its output; it survives the runtime's fusions.

    Args:
        place: in the file, at most 99,999.
    """
    return f"k{place:05d}"


def kernel_times(nodes: Iterable[tuple[str, float]], count: int) -> list[float]:
    """Milliseconds per kernel from a profile's ``(node name, ms)``; NaN where it has none."""
    found = [math.nan] * count
    for name, ms in nodes:
        match = _NAME.search(name)
        if match:
            i = int(match.group(1))
            found[i] = ms if math.isnan(found[i]) else found[i] + ms
    return found

"""How far this process's peak memory grows by a file; packed for other devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from autocompress.errors import MeasurementError
from autocompress.targets.lengths import Lengths, drawn_inputs
from autocompress.targets.session import Session

STATUS = Path("/proc/self/status")
_RUNS = 3


def peak_growth(opened: Callable[[], Session], asked: Lengths) -> int:
    """Bytes that opening a file and running it add to what this process holds.

    Args:
        opened: opens the file; the runtime is loaded before.
        asked: samples and lengths of the inputs.

    Raises:
        MeasurementError: the system does not tell a process its peak.
    """
    before = _resident("VmRSS")
    with closing(opened()) as session:
        run = session.prepare(drawn_inputs(session, asked)[-1])
        for _ in range(_RUNS):
            run()
        return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (its peak) of this process in bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise MeasurementError(f"The system does not tell {field} of a process.")

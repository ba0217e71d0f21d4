"""Energy of one inference of a file, where the machine tells energy; packed for other devices."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from autocompress.errors import MeasurementError
from autocompress.machine.energy import energy_meter
from autocompress.measure.rounds import warm_up

PIECE_S, PIECES = 0.7, 3
"""RAPL is brought up to date every millisecond, tegrastats sampled every 50."""


def energy_mj(call: Callable[[], object], inferences: int) -> float:
    """Millijoules of one inference: the median over pieces in which it runs all the time.

    Energy of the whole package or board, what idles and whatever else runs included.

    Args:
        call: runs a file.
        inferences: in one call.

    Raises:
        MeasurementError: the machine tells none.
    """
    meter = energy_meter()
    if isinstance(meter, str):
        raise MeasurementError(f"The energy of this machine cannot be measured: {meter}.")
    count = max(1, round(PIECE_S / warm_up(call)))

    def work() -> None:
        for _ in range(count):
            call()

    found = [meter.joules(work) / (count * inferences) for _ in range(PIECES)]
    return 1e3 * median(found)

"""Energy of one inference of an exported file, where the machine tells energy."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from autocompress.machine.energy import energy_meter
from autocompress.machine.lock import after_timing
from autocompress.measure.joules import energy_mj
from autocompress.measure.taking import call_of
from autocompress.targets.base import Target
from autocompress.targets.lengths import drawn_inputs


def no_energy(target: Target) -> str:
    """Why nothing tells the energy of inferences on a target, and what helps; else empty."""
    if target.elsewhere is not None:
        return target.elsewhere.no_energy
    found = energy_meter()
    return found if isinstance(found, str) else ""


def inference_energy_mj(target: Target, path: str | Path) -> float:
    """Millijoules of one inference of a file; see ``joules.energy_mj``.

    Raises:
        MeasurementError: the machine tells none.
    """
    if target.elsewhere is not None:
        return float(target.elsewhere.ask("energy", target.fields(), [Path(path)])[0])
    after_timing()
    with closing(target.open(path)) as session, target.timing_lock():
        fed = drawn_inputs(session, target.config)
        return energy_mj(call_of(session, fed), len(fed))

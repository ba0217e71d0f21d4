"""Timing on another device: the files go there, and what its rounds found comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autocompress.machine.device import Device
from autocompress.machine.waiting import seconds_from
from autocompress.measure.quiet import PATIENCE_S, WAIT_VARIABLE, QuietSpeed
from autocompress.measure.sampling import Plan, Samples
from autocompress.targets.base import Target


def times_there(
    target: Target, device: Device, paths: Sequence[Path], plan: Plan, quiet: QuietSpeed
) -> tuple[Samples, dict[str, Any]]:
    """Times of files on a device, as ``taking.take`` finds them there.

    Args:
        target: tells threads, batch and lengths.
        device: where they run.
        paths: the baseline's first.
        plan: when to stop.
        quiet: how quickly the baseline has been seen to run there; learns.
    """
    asked = {
        "plan": asdict(plan),
        "quiet": {"recent": list(quiet.recent), "in_vain": quiet.in_vain},
        "wait_s": seconds_from(WAIT_VARIABLE, PATIENCE_S),
    }
    found, _ = device.ask("timings", target.fields(), paths, asked)
    quiet.recent.clear()
    quiet.recent.extend(found["quiet"]["recent"])
    quiet.in_vain = found["quiet"]["in_vain"]
    facts = {**found["facts"], "machine": dict(device.machine)}
    return Samples.from_dict(found["samples"]), facts

"""Opened files are timed in turn, and what was going on meanwhile is noted; packed for devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from autocompress.machine.facts import load_average, machine_state
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import InterleavedTiming, Plan, Samples
from autocompress.targets.session import Arrays, Session


def call_of(session: Session, fed: Sequence[Arrays]) -> Callable[[], object]:
    """A call that runs a file once for each of some inputs; ``prepare`` may hold one only."""
    if len(fed) == 1:
        return session.prepare(fed[0])
    return partial(_run_all, session, fed)


def _run_all(session: Session, fed: Sequence[Arrays]) -> None:
    for one in fed:
        session.run(one)


def take(
    calls: Sequence[Callable[[], object]], counts: Sequence[int], plan: Plan, quiet: QuietSpeed
) -> tuple[Samples, dict[str, Any]]:
    """Time calls in turn.

    Args:
        calls: the baseline's first.
        counts: inferences in each; their mean is what counts.
        plan: when to stop.
        quiet: how quickly the baseline has been seen to run; learns.

    Returns:
        Times of one inference, and the circumstances: load, share of the wall time that the
        process had a core for, temperature, frequency and governor where the system tells them.
    """
    load, before = load_average(), machine_state()
    cpu, wall = time.process_time(), time.perf_counter()
    samples = InterleavedTiming(calls, plan, quiet).run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    facts = {
        "load_before": load,
        "load_after": load_average(),
        "cpu_share": cpu / max(wall - samples.waited_s, 1e-9),
        "waited_s": samples.waited_s,
        "state_before": before,
        "state_after": machine_state(),
    }
    return replace(samples, turns=samples.turns / np.array(counts)), facts

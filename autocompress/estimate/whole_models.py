"""Time whole compressed models beside the uncompressed one, for the latency model to learn from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from autocompress.errors import ExportError
from autocompress.machine.progress import Progress
from autocompress.measure.latency import Timing, paired_timings
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.rounds import Clock
from autocompress.measure.sampling import Plan
from autocompress.policy.attempt import attempt
from autocompress.policy.policy import Policy
from autocompress.targets.base import Target

ExportVariant = Callable[[Policy], Path]
"""Builds and exports the model of a policy; only its speed matters, so that weights may be poor."""

PURPOSE = "what latency is learned from"

#: measured together, paired with the uncompressed model
_AT_ONCE = 6
#: after so many seconds no further models are exported; trials teach the rest
_ENOUGH_S = 60.0
_PLAN = Plan(precision=0.03, min_rounds=8, max_seconds=3.0, slot_ms=3.0)


def time_variants(
    target: Target,
    policies: Sequence[Policy],
    baseline: Path,
    export_variant: ExportVariant,
    quiet: QuietSpeed,
    progress: Progress,
    clock: Clock = time.monotonic,
) -> tuple[dict[Policy, float], float]:
    """Share of the uncompressed latency that each policy's model takes, and that latency in ms.

    A model that cannot be built, exported or run is left out, with a warning.

    Args:
        target: where the models run.
        policies: of the models.
        baseline: the exported uncompressed model.
        export_variant: see ``ExportVariant``; the files are deleted when timed.
        quiet: told how quickly the uncompressed model ran.
        progress: told how far it is.
        clock: in seconds.

    Raises:
        ExportError: all of them failed.
    """
    begin = clock()
    timings: dict[int, Timing] = {}
    reasons: list[str] = []
    time_together = partial(paired_timings, target, baseline=baseline, plan=_PLAN, quiet=quiet)

    def measure(places: Sequence[int]) -> None:
        found, failed = _timed({i: policies[i] for i in places}, export_variant, time_together)
        timings.update(found)
        reasons.extend(failed)

    for places in _batches(_spread(len(policies))):
        if timings and clock() - begin > _ENOUGH_S:
            break
        measure(places)
        progress("whole models", (places[-1] + 1) / len(policies))
    if policies and not timings:
        raise ExportError(none_left(len(policies), reasons[-1]))
    # the first ones were judged before anything was known about a quiet machine
    late = [i for i, t in timings.items() if quiet.disturbed(t.baseline_ms)]
    for places in _batches(late):
        measure(places)
    base = [t.baseline_ms for t in timings.values()]
    if not base:
        base = [time_together([baseline])[0].latency_ms]
    return {policies[i]: t.ratio for i, t in sorted(timings.items())}, float(np.median(base))


def _spread(count: int) -> list[int]:
    """Policies of the first half and of the second in turn: both kinds, wherever it ends."""
    half = -(-count // 2)
    turns = zip_longest(range(half), range(half, count))
    return [place for turn in turns for place in turn if place is not None]


def _batches(places: Sequence[int]) -> list[Sequence[int]]:
    return [places[i : i + _AT_ONCE] for i in range(0, len(places), _AT_ONCE)]


def _timed(
    policies: Mapping[int, Policy],
    export_variant: ExportVariant,
    time_together: Callable[[Sequence[Path]], list[Timing]],
) -> tuple[dict[int, Timing], list[str]]:
    """Timings of some models by their number, and why others have none."""
    files: dict[int, Path] = {}
    timings: dict[int, Timing] = {}
    reasons = []
    for i, policy in policies.items():
        file, reason = attempt(policy, PURPOSE, partial(export_variant, policy))
        if file is None:
            reasons.append(reason)
        else:
            files[i] = Path(file)
    try:
        if files:
            timings = dict(zip(files, time_together([*files.values()]), strict=True))
    except Exception:  # one of them does not run: which of them, each alone tells
        for i, file in files.items():
            found, reason = attempt(policies[i], PURPOSE, partial(time_together, [file]))
            if found is None:
                reasons.append(reason)
            else:
                timings[i] = found[0]
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)
    return timings, reasons


def none_left(count: int, reason: str) -> str:
    """What to say where no compressed model at all can be built, exported and run."""
    return (
        f"None of {count} compressed models of this space could be built, exported and run, the "
        f"last one because: {reason} Leave the layers that this names as they are (a rule of the "
        "space, `{match: NAME, prune_ratio: [0], weight_bits: [32], activation_bits: [32]}`), or "
        "choose another `target.runtime`."
    )

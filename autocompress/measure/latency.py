"""Latency of exported files, always paired with the uncompressed one in the same runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.machine.facts import machine_facts
from autocompress.machine.lock import after_timing, timing_lock
from autocompress.machine.waiting import seconds_from
from autocompress.measure.energy import inference_energy_mj, no_energy
from autocompress.measure.memory import peak_memory_bytes
from autocompress.measure.quiet import TIMING_VARIABLE, QuietSpeed
from autocompress.measure.sampling import Plan, Samples
from autocompress.measure.taking import call_of, take
from autocompress.measure.there import times_there
from autocompress.policy.claims import TimingClaim
from autocompress.policy.defaults import DEFAULT_RUNTIME
from autocompress.policy.policy import Policy
from autocompress.targets import get_target
from autocompress.targets.base import Arrays, Target, TargetConfig
from autocompress.targets.lengths import drawn_inputs


@dataclass(frozen=True)
class Timing:
    """One file's latency paired with a baseline's.

    Args:
        latency_ms, iqr_ms: median and interquartile range of the file.
        baseline_ms, baseline_iqr_ms: the same of the baseline, from the same rounds.
        ratio: median over the rounds of file time / baseline time; below 1 is faster.
        ratio_low, ratio_high: its bootstrap interval.
        confidence: of the interval.
        noisy: the interval stayed wider than asked when the time was over.
        rounds: interleaved rounds.
        size_bytes, baseline_size_bytes: of the files.
        facts: machine, target, load, share of the wall time that the process had a core for.
        disturbed: the baseline never ran as quickly as it does in other timings.
        p99_ms, baseline_p99_ms: 99th percentile of single inferences; ``None`` where fewer than a
            hundred were timed.
    """

    latency_ms: float
    iqr_ms: float
    baseline_ms: float
    baseline_iqr_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    confidence: float
    noisy: bool
    rounds: int
    seconds: float
    size_bytes: int
    baseline_size_bytes: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    disturbed: bool = False
    p99_ms: float | None = None
    baseline_p99_ms: float | None = None

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.ratio_high < 1

    @property
    def slower(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.ratio_low > 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know before they rely on it."""
        if not self.disturbed:
            return ()
        return ("Something else slowed the machine at every timing: the latency may be too high.",)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for records and ``--json``."""
        return {**asdict(self), "facts": dict(self.facts)}


SINGLE_CALLS = 200
"""Single inferences that are timed where the 99th percentile is asked for."""
_FIGURES = (
    *("latency_ms", "iqr_ms", "baseline_ms", "baseline_iqr_ms"),
    *("ratio", "ratio_low", "ratio_high", "noisy", "rounds"),
)
"""What one timing found, all of it in the same rounds."""


@dataclass
class Undisturbed:
    """How long the files of policies take while nothing disturbs their timing.

    Training changes the values of a file's weights, which no runtime's time depends on.
    """

    _known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, policy: Policy, timing: TimingClaim) -> None:
        """Keep a timing, unless it was disturbed or says too little."""
        found = {key: getattr(timing, key) for key in _FIGURES}
        if None not in found.values() and timing.disturbed is False:
            tails = {key: getattr(timing, key) for key in ("p99_ms", "baseline_p99_ms")}
            self._known[policy.untrained_digest] = found | tails

    def instead(self, timing: Timing, policy: Policy) -> tuple[Timing, list[str]]:
        """A timing with what people should know of it.

        Where it was disturbed, an earlier one of the same policy takes its place.
        """
        known = self._known.get(policy.untrained_digest)
        if not timing.disturbed or known is None:
            return timing, list(timing.notes)
        note = (
            f"Something else slowed the machine ({timing.ratio:.2f} times the uncompressed "
            "latency); the latency is that of the same policy in a quieter moment."
        )
        facts = {**timing.facts, "earlier": True}
        return replace(timing, **known, facts=facts, disturbed=False), [note]


def paired_timing(
    target: Target,
    candidate: str | Path,
    baseline: str | Path,
    *,
    inputs: Arrays | None = None,
    plan: Plan | None = None,
    quiet: QuietSpeed | None = None,
) -> Timing:
    """Time a file interleaved with a baseline; see ``paired_timings``.

    The two may be the same file: the ratio is then 1 but for noise.
    """
    return paired_timings(target, [candidate], baseline, inputs=inputs, plan=plan, quiet=quiet)[0]


def paired_timings(
    target: Target,
    candidates: Sequence[str | Path],
    baseline: str | Path,
    *,
    inputs: Arrays | None = None,
    plan: Plan | None = None,
    quiet: QuietSpeed | None = None,
) -> list[Timing]:
    """Time several files interleaved with one baseline; see ``InterleavedTiming`` for when it ends.

    The timing lock is held while rounds are taken and while it waits for a quiet machine, so that
    computing of ours pauses; not while files are opened.

    Args:
        target: where they run; its batch and threads hold for all.
        candidates: exported files.
        baseline: usually the uncompressed model.
        inputs: one array per input of the files; random ones by default, and on another device.
        plan: precision, time limit (``AUTOCOMPRESS_TIMING_S`` may set a shorter one), seed.
        quiet: how quickly the baseline has been seen to run, for timings of one study; learns.

    Returns:
        One ``Timing`` per candidate, in order.

    Raises:
        InputError: a file that the target cannot open.
    """
    plan, quiet = plan or Plan(), quiet or QuietSpeed()
    longest = seconds_from(TIMING_VARIABLE, plan.max_seconds)
    plan = replace(plan, max_seconds=min(plan.max_seconds, longest))
    paths = [Path(baseline), *(Path(c) for c in candidates)]
    if target.elsewhere is not None:
        samples, facts = times_there(target, target.elsewhere, paths, plan, quiet)
    else:
        samples, facts = _times_here(target, paths, inputs, plan, quiet)
    facts |= {"target": target.describe(), "plan": asdict(plan)}
    sizes = [_size(path) for path in paths]
    return [_timing(samples, i, plan, sizes, facts) for i in range(1, len(paths))]


def _times_here(
    target: Target, paths: Sequence[Path], inputs: Arrays | None, plan: Plan, quiet: QuietSpeed
) -> tuple[Samples, dict[str, Any]]:
    after_timing()
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(target.open(path))) for path in paths]
        fed = [
            [inputs] if inputs is not None else drawn_inputs(session, target.config, plan.seed)
            for session in sessions
        ]
        calls = [call_of(session, one) for session, one in zip(sessions, fed, strict=True)]
        with timing_lock():
            samples, facts = take(calls, [len(one) for one in fed], plan, quiet)
    return samples, {**facts, "machine": machine_facts()}


def bench(
    a: str | Path,
    b: str | Path | None = None,
    target: Target | TargetConfig | Mapping[str, Any] | str = DEFAULT_RUNTIME,
    *,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Latency of anyone's file, or of two interleaved.

    Args:
        a: an exported file.
        b: what to compare it with; ``ratio`` is then time of ``a`` / time of ``b``.
        target: a target, its config, or a runtime's name.
        plan: precision, time limit (``AUTOCOMPRESS_TIMING_S`` may set a shorter one), seed.

    Returns:
        Plain data: ``latency_ms``, ``iqr_ms``, ``latency_p99_ms``, ``size_bytes``,
        ``peak_memory_bytes`` and ``energy_mj`` (``None`` where the system does not tell it),
        ``noisy``, ``rounds``, ``facts``; with ``b`` the same of it, their names begun by ``vs_``,
        ``ratio``, ``ratio_low``, ``ratio_high``, ``verdict``.
    """
    where = target if isinstance(target, Target) else get_target(target)
    plan = plan or Plan(single_calls=SINGLE_CALLS)
    timing = paired_timing(where, a, a if b is None else b, plan=plan)
    files = [path for path in (a, b) if path is not None]
    memory = [peak_memory_bytes(where, path) for path in files]
    energy = [None if no_energy(where) else inference_energy_mj(where, path) for path in files]
    out: dict[str, Any] = {
        "file": str(a),
        "latency_ms": timing.latency_ms,
        "iqr_ms": timing.iqr_ms,
        "latency_p99_ms": timing.p99_ms,
        "size_bytes": timing.size_bytes,
        "peak_memory_bytes": memory[0],
        "energy_mj": energy[0],
        **{k: getattr(timing, k) for k in ("noisy", "rounds", "seconds")},
        "facts": dict(timing.facts),
    }
    if b is None:
        return out
    return out | {
        "vs": str(b),
        "vs_latency_ms": timing.baseline_ms,
        "vs_iqr_ms": timing.baseline_iqr_ms,
        "vs_latency_p99_ms": timing.baseline_p99_ms,
        "vs_size_bytes": timing.baseline_size_bytes,
        "vs_peak_memory_bytes": memory[1],
        "vs_energy_mj": energy[1],
        **{k: getattr(timing, k) for k in ("ratio", "ratio_low", "ratio_high", "confidence")},
        "verdict": "faster" if timing.faster else "slower" if timing.slower else "no difference",
    }


def _timing(
    samples: Samples, i: int, plan: Plan, sizes: Sequence[int], facts: Mapping[str, Any]
) -> Timing:
    """What the rounds say about call ``i``."""
    ratio, low, high = samples.interval(i, plan)
    median, iqr = _median_iqr(samples.times(i))
    base_median, base_iqr = _median_iqr(samples.times(0))
    if not np.isfinite([ratio, median, base_median]).all():
        raise MeasurementError(
            f"A latency must be finite, got {median} ms and {base_median} ms for the baseline."
        )
    return Timing(
        latency_ms=median,
        iqr_ms=iqr,
        baseline_ms=base_median,
        baseline_iqr_ms=base_iqr,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        confidence=plan.confidence,
        noisy=high - low > plan.precision * ratio,
        rounds=int(samples.used.sum()),
        seconds=samples.seconds,
        size_bytes=sizes[i],
        baseline_size_bytes=sizes[0],
        facts={
            **facts,
            "rounds_left_out": int((~samples.used).sum()),
            "repetitions": samples.repetitions[:, i].tolist(),
        },
        disturbed=samples.disturbed,
        p99_ms=_p99(samples, i, median),
        baseline_p99_ms=_p99(samples, 0, base_median),
    )


def _p99(samples: Samples, call: int, median: float) -> float | None:
    tail = samples.tails[call] if len(samples.tails) else np.nan
    return float(tail * median) if np.isfinite(tail) else None


def _median_iqr(values: Any) -> tuple[float, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(high - low)


def _size(path: Path) -> int:
    """Bytes of a model file and of the weights beside it, if they are stored apart."""
    return sum(f.stat().st_size for f in (path, path.with_name(path.name + ".data")) if f.is_file())

"""Latency of exported files, always beside the uncompressed one in the same runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.lock import machine_lock
from autocompress.measure.machine import load_average, machine_facts
from autocompress.measure.memory import peak_memory_bytes
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import Plan, Samples, interleave, ratio_interval
from autocompress.targets import get_target
from autocompress.targets.base import Inputs, Target, TargetConfig, random_inputs

_AGREE = 0.05
"""Two sittings agree when their ratios differ by no more than this fraction."""
_MOST_SITTINGS = 5
_GLANCE = Plan(min_rounds=2, max_seconds=0.0)
"""Two rounds, however wide their interval."""


@dataclass(frozen=True)
class Timing:
    """One file's latency beside a baseline's.

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
        disturbed: the baseline never ran as quickly as it does in other sittings.
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


def compare(
    target: Target,
    candidate: str | Path,
    baseline: str | Path,
    *,
    inputs: Inputs | None = None,
    plan: Plan | None = None,
) -> Timing:
    """Time a file interleaved with a baseline; see ``compare_many``.

    The two may be the same file: the ratio is then 1 but for noise.
    """
    return compare_many(target, [candidate], baseline, inputs=inputs, plan=plan)[0]


def compare_many(
    target: Target,
    candidates: Sequence[str | Path],
    baseline: str | Path,
    *,
    inputs: Inputs | None = None,
    plan: Plan | None = None,
) -> list[Timing]:
    """Time several files interleaved with one baseline, with the machine to ourselves.

    Args:
        target: where they run; its batch and threads hold for all.
        candidates: exported files.
        baseline: usually the uncompressed model.
        inputs: one array per input of the files; random ones by default.
        plan: precision, time limit, seed.

    Returns:
        One ``Timing`` per candidate, in order.

    Raises:
        InputError: a file that the target cannot open.
    """
    plan = plan or Plan()
    paths = [Path(baseline), *(Path(c) for c in candidates)]
    with machine_lock(exclusive=True), ExitStack() as stack:
        calls = []
        for path in paths:
            session = stack.enter_context(closing(target.open(path)))
            fed = (
                inputs
                if inputs is not None
                else random_inputs(session.inputs, target.config.batch, plan.seed)
            )
            calls.append(session.prepare(fed))
        load, cpu, wall = load_average(), time.process_time(), time.perf_counter()
        samples = interleave(calls, plan)
        share = (time.process_time() - cpu) / max(time.perf_counter() - wall, 1e-9)
    facts = {
        "target": target.describe(),
        "machine": machine_facts(),
        "load_before": load,
        "load_after": load_average(),
        "cpu_share": share,
        "rounds_left_out": samples.left_out,
        "plan": asdict(plan),
    }
    sizes = [_size(path) for path in paths]
    return [_timing(samples, i, plan, sizes, facts) for i in range(1, len(paths))]


class Sittings(Protocol):
    """Timings of one file beside one baseline, as many as are asked for."""

    @property
    def quiet(self) -> QuietSpeed:
        """What earlier timings beside the same baseline showed."""

    def __call__(self) -> Timing:
        """Another timing; it pays to let some time pass between two."""

    def watch(self) -> AbstractContextManager[Callable[[], float]]:
        """Gives a function that tells roughly how many milliseconds the baseline takes now."""


@dataclass(frozen=True)
class Beside:
    """Sittings of a file beside a baseline.

    Args:
        target: where they run.
        candidate, baseline: exported files.
        plan: of each sitting.
        quiet: what earlier sittings with the same baseline showed; told about these.
    """

    target: Target
    candidate: str | Path
    baseline: str | Path
    plan: Plan = field(default_factory=Plan)
    quiet: QuietSpeed = field(default_factory=QuietSpeed)

    def __call__(self) -> Timing:
        """One more; see ``compare``."""
        plan = replace(self.plan, slowest_ms=self.quiet.slowest_ms)
        return compare(self.target, self.candidate, self.baseline, plan=plan)

    @contextmanager
    def watch(self) -> Iterator[Callable[[], float]]:
        """Opens the baseline; each call of the function times it for a few dozen milliseconds."""
        with closing(self.target.open(self.baseline)) as session:
            fed = random_inputs(session.inputs, self.target.config.batch)
            yield partial(glance, session.prepare(fed))


def glance(call: Callable[[], object]) -> float:
    """Milliseconds of a call, roughly: the median of a few turns, with the machine to itself."""
    with machine_lock(exclusive=True):
        return float(np.median(interleave([call], _GLANCE).turns))


def settle(
    first: Timing,
    again: Sittings,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Timing:
    """One timing from several sittings, apart in time.

    What shares a core with us (another tenant on its second hardware thread) can slow code of one
    kind more than of another for seconds at a time: wide integer instructions by half, floating
    point by a tenth. Then even an interleaved ratio is wrong, and its interval does not know. Since
    whatever comes from outside only slows, the sitting counts in which the baseline ran quickest;
    there are at least two, and more until another one agrees with it. Two disturbed ones agree as
    well: where the baseline has been seen to run quicker, the next sitting waits until it does.
    Once ten sittings have shown how quickly it runs, one as quick as that is enough.

    Args:
        first: a sitting.
        again: makes more of them.
        pause: waits for so many seconds.
        clock: in seconds.

    Returns:
        The chosen sitting, ``disturbed`` where waiting did not help; the ratios of all sittings
        and the seconds of waiting are among its ``facts``.
    """
    quiet = again.quiet
    enough = 1 if quiet.experienced else 2
    quiet.note(first.baseline_ms)
    sittings, patient, waited = [first], True, 0.0
    while True:
        best = min(sittings, key=lambda t: t.baseline_ms)
        near = [t for t in sittings if abs(t.ratio - best.ratio) <= _AGREE * best.ratio]
        disturbed = quiet.disturbed(best.baseline_ms)
        settled = len(near) >= enough and not disturbed
        if settled or not patient or len(sittings) >= _MOST_SITTINGS:
            ratios = [t.ratio for t in sittings]
            facts = {**best.facts, "sittings": ratios, "waited_s": waited}
            return replace(best, disturbed=disturbed, facts=facts)
        if quiet.disturbed(sittings[-1].baseline_ms):
            start = clock()
            with again.watch() as look:
                patient = quiet.wait(look, pause, clock)
            waited += clock() - start
        if patient or len(sittings) == 1:
            sittings.append(again())
            quiet.note(sittings[-1].baseline_ms)


def bench(
    a: str | Path,
    b: str | Path | None = None,
    target: Target | TargetConfig | Mapping[str, Any] | str = "onnxruntime",
    *,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Latency of anyone's file, or of two interleaved.

    Args:
        a: an exported file.
        b: what to compare it with; ``ratio`` is then time of ``a`` / time of ``b``.
        target: a target, its config, or a runtime's name.
        plan: precision, time limit, seed.

    Returns:
        Plain data: ``latency_ms``, ``iqr_ms``, ``size_bytes``, ``peak_memory_bytes`` (``None``
        where the system does not tell it), ``noisy``, ``rounds``, ``facts``; with ``b`` also
        ``vs_latency_ms``, ``vs_iqr_ms``, ``vs_size_bytes``, ``vs_peak_memory_bytes``, ``ratio``,
        ``ratio_low``, ``ratio_high``, ``verdict``.
    """
    where = target if isinstance(target, Target) else get_target(target)
    sitting = Beside(where, a, a if b is None else b, plan or Plan())
    first = sitting()
    memory = [peak_memory_bytes(where.config, path) for path in (a, b) if path is not None]
    # a file beside itself has no ratio that a second sitting could mend
    timing = first if b is None else settle(first, sitting)
    out: dict[str, Any] = {
        "file": str(a),
        "latency_ms": timing.latency_ms,
        "iqr_ms": timing.iqr_ms,
        "size_bytes": timing.size_bytes,
        "peak_memory_bytes": memory[0],
        "noisy": timing.noisy,
        "rounds": timing.rounds,
        "seconds": timing.seconds,
        "facts": dict(timing.facts),
    }
    if b is not None:
        verdict = "faster" if timing.faster else "slower" if timing.slower else "no difference"
        out |= {
            "vs": str(b),
            "vs_latency_ms": timing.baseline_ms,
            "vs_iqr_ms": timing.baseline_iqr_ms,
            "vs_size_bytes": timing.baseline_size_bytes,
            "vs_peak_memory_bytes": memory[1],
            "ratio": timing.ratio,
            "ratio_low": timing.ratio_low,
            "ratio_high": timing.ratio_high,
            "confidence": timing.confidence,
            "verdict": verdict,
        }
    return out


def _timing(
    samples: Samples, i: int, plan: Plan, sizes: Sequence[int], facts: Mapping[str, Any]
) -> Timing:
    ratio, low, high = ratio_interval(
        samples.rounds[:, i], samples.rounds[:, 0], plan.confidence, plan.seed
    )
    median, iqr = _median_iqr(samples.turns[:, i])
    base_median, base_iqr = _median_iqr(samples.turns[:, 0])
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
        rounds=len(samples.rounds),
        seconds=samples.seconds,
        size_bytes=sizes[i],
        baseline_size_bytes=sizes[0],
        facts=facts,
    )


def _median_iqr(values: Any) -> tuple[float, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(high - low)


def _size(path: Path) -> int:
    """Bytes of a model file and of the weights beside it, if they are stored apart."""
    return sum(f.stat().st_size for f in (path, path.with_name(path.name + ".data")) if f.is_file())

"""Timing real files: records, order of the files, and what anyone's ``bench`` says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.measure import latency
from autocompress.measure.latency import Beside, Timing, bench, compare, compare_many, settle
from autocompress.measure.lock import machine_lock
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import Plan, Samples
from autocompress.targets import get_target

_SHORT = Plan(precision=0.5, min_rounds=2, max_seconds=0.2, slot_ms=1.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes every timing return given rounds, in milliseconds."""

    def play(rounds: Any) -> None:
        array = np.asarray(rounds, dtype=float)
        monkeypatch.setattr(
            latency,
            "interleave",
            lambda calls, plan: Samples(array, np.repeat(array, 2, axis=0), 1.0, True),
        )

    return play


def test_figures_are_those_of_the_rounds(
    exported: dict[str, Path], played: Callable[[Any], None]
) -> None:
    rng = np.random.default_rng(0)
    base = rng.lognormal(0.7, 0.2, 31)
    played(np.stack([base, base * 0.25, base * 3.0], axis=1))
    path = exported[".onnx"]
    quick, slow = compare_many(get_target("onnxruntime"), [path, path], path)
    assert quick.ratio == pytest.approx(0.25)
    assert slow.ratio == pytest.approx(3.0)
    assert (quick.faster, quick.slower) == (True, False)
    assert (slow.faster, slow.slower) == (False, True)
    assert quick.baseline_ms == slow.baseline_ms == pytest.approx(np.median(base))
    assert quick.latency_ms == pytest.approx(np.median(base) / 4)
    assert not quick.noisy
    low, high = np.percentile(np.repeat(base, 2), [25, 75])
    assert quick.baseline_iqr_ms == pytest.approx(high - low)


def test_a_wide_interval_is_called_noisy(
    exported: dict[str, Path], played: Callable[[Any], None]
) -> None:
    rng = np.random.default_rng(0)
    played(rng.lognormal(0, 0.6, (12, 2)))
    path = exported[".onnx"]
    found = compare(get_target("onnxruntime"), path, path)
    assert found.noisy
    assert found.ratio_low < 1 < found.ratio_high


def sitting(ratio: float, baseline_ms: float) -> Timing:
    near = {"ratio_low": 0.99 * ratio, "ratio_high": 1.01 * ratio}
    plain = {"iqr_ms": 0.0, "baseline_iqr_ms": 0.0, "confidence": 0.95, "noisy": False}
    sizes = {"rounds": 12, "seconds": 0.3, "size_bytes": 1, "baseline_size_bytes": 1}
    return Timing(
        ratio * baseline_ms, baseline_ms=baseline_ms, ratio=ratio, **near, **plain, **sizes
    )


@dataclass
class Given:
    """Sittings that were made before, on a machine that is quiet whenever somebody looks."""

    timings: Iterator[Timing]
    quiet: QuietSpeed = field(default_factory=QuietSpeed)

    def __call__(self) -> Timing:
        return next(self.timings)

    @contextmanager
    def watch(self) -> Iterator[Callable[[], float]]:
        yield lambda: 0.0


@pytest.mark.parametrize(
    ("seen", "taken"),
    [
        # two that agree are enough, and the quieter one counts
        ([(0.45, 0.74), (0.46, 0.73), (9.0, 0.1)], 2),
        # the slow spell comes first, in the middle, or is all there is but for the end
        ([(0.58, 0.83), (0.45, 0.75), (0.46, 0.74)], 3),
        ([(0.45, 0.74), (0.58, 0.82), (0.44, 0.75)], 3),
        ([(0.58, 0.83), (0.45, 0.75), (0.59, 0.84), (0.60, 0.85), (0.46, 0.76)], 5),
        # two slow ones agree with each other, but not with the quietest
        ([(0.45, 0.74), (0.58, 0.82), (0.58, 0.83), (0.45, 0.75)], 4),
        # nothing ever agrees: some end there must be
        ([(0.4, 0.75), (0.5, 0.74), (0.6, 0.73), (0.7, 0.72), (0.8, 0.71), (0.9, 0.7)], 5),
    ],
)
def test_the_sitting_with_the_quickest_baseline_counts(
    seen: list[tuple[float, float]], taken: int
) -> None:
    given = Given(iter([sitting(*pair) for pair in seen]))
    found = settle(given(), given)
    ratio, quickest = min(seen[:taken], key=lambda pair: pair[1])
    assert (found.ratio, found.baseline_ms) == (ratio, quickest)
    assert found.facts["sittings"] == [r for r, _ in seen[:taken]]


def test_watching_tells_the_milliseconds_of_the_baseline(exported: dict[str, Path]) -> None:
    """In the same unit as a whole timing: a factor of ten is beyond what any busy machine does."""
    target, path = get_target({"threads": 1, "batch": 64}), exported[".onnx"]
    with Beside(target, path, path).watch() as look:
        seen = float(np.median([look() for _ in range(5)]))
    assert 0.1 < seen / compare(target, path, path, plan=_SHORT).baseline_ms < 10


def test_a_record_says_where_and_how_it_was_taken(exported: dict[str, Path]) -> None:
    target = get_target({"threads": 1, "batch": 2})
    path = exported[".onnx"]
    found = compare(target, path, path, plan=_SHORT)
    assert found.latency_ms > 0
    assert found.baseline_ms > 0
    assert found.size_bytes == found.baseline_size_bytes == path.stat().st_size
    facts = json.loads(json.dumps(found.as_dict(), allow_nan=False))["facts"]
    assert facts["target"] == target.describe()
    assert facts["machine"]["usable_cores"] >= 1
    assert facts["plan"]["max_seconds"] == 0.2


def test_weights_beside_the_file_count_as_its_size(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"x" * 10)
    file.with_name("m.onnx.data").write_bytes(b"y" * 100)
    assert latency._size(file) == 110


def test_nothing_is_timed_inside_shared_work(exported: dict[str, Path]) -> None:
    from autocompress.errors import MeasurementError

    path = exported[".onnx"]
    with machine_lock(exclusive=False), pytest.raises(MeasurementError, match="shared"):
        compare(get_target("onnxruntime"), path, path, plan=_SHORT)


def test_bench_of_one_file_and_of_two(exported: dict[str, Path], wide_file: Path) -> None:
    wide = wide_file
    alone = bench(exported[".onnx"], plan=_SHORT)
    assert alone["latency_ms"] > 0
    assert "ratio" not in alone
    both = bench(exported[".onnx"], wide, "onnxruntime", plan=_SHORT)
    assert both["vs_size_bytes"] == wide.stat().st_size > both["size_bytes"]
    assert both["vs_peak_memory_bytes"] > 0 < both["peak_memory_bytes"]
    assert both["ratio_low"] <= both["ratio"] <= both["ratio_high"]
    assert both["verdict"] in ("faster", "slower", "no difference")
    assert (both["verdict"] == "faster") == (both["ratio_high"] < 1)
    assert len(both["facts"]["sittings"]) >= 2


def test_given_inputs_are_the_ones_that_run(exported: dict[str, Path]) -> None:
    target = get_target("onnxruntime")
    wrong = [np.zeros((1, 3, 9), np.float32)]
    with closing(target.open(exported[".onnx"])) as session, pytest.raises(Exception, match="rank"):
        session.run(wrong)
    with pytest.raises(Exception, match="rank"):
        compare(target, exported[".onnx"], exported[".onnx"], inputs=wrong, plan=_SHORT)


def test_an_absent_file_is_an_input_error(exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model file"):
        bench(exported[".onnx"], tmp_path / "absent.onnx", plan=_SHORT)

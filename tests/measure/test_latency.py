"""Timing real files: records, order of the files, and what anyone's ``bench`` says."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.machine import lock
from autocompress.measure import sampling, taking
from autocompress.measure.latency import _size, bench, paired_timing, paired_timings
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.rounds import take_round
from autocompress.measure.sampling import InterleavedTiming, Plan, Samples
from autocompress.policy.claims import TimingClaim
from autocompress.results.metric import Measurement
from autocompress.targets import get_target

_SHORT = Plan(precision=0.5, min_rounds=2, max_seconds=0.2, slot_ms=1.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes every timing return given rounds, in milliseconds."""

    def play(rounds: Any) -> None:
        array = np.asarray(rounds, dtype=float)
        ratios = np.median(array / array[:, :1], axis=0, keepdims=True)
        used = np.ones(len(array), dtype=np.bool_)
        samples = Samples(np.repeat(array, 2, axis=0), used, ratios)
        monkeypatch.setattr(InterleavedTiming, "run", lambda self: samples)

    return play


def test_figures_are_those_of_the_rounds(
    exported: dict[str, Path], played: Callable[[Any], None]
) -> None:
    rng = np.random.default_rng(0)
    base = rng.lognormal(0.7, 0.2, 31)
    played(np.stack([base, base * 0.25, base * 3.0], axis=1))
    path = exported[".onnx"]
    quick, slow = paired_timings(get_target("onnxruntime"), [path, path], path)
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
    found = paired_timing(get_target("onnxruntime"), path, path)
    assert found.noisy
    assert found.ratio_low < 1 < found.ratio_high
    # what is read of a record is what was written, under the same names
    record = json.loads(json.dumps(found.as_dict()))
    told = Measurement({}, context={"timing": record}).timing
    for name in TimingClaim.model_fields.keys() - {"facts"}:
        assert getattr(told, name) == getattr(found, name)
    assert told.facts is not None
    assert told.facts.machine == found.facts["machine"]


@pytest.mark.parametrize("count", [1, 2])
def test_rounds_that_do_not_count_are_in_no_figure(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Twelve quiet rounds after eight loud ones; what it waited and left out is in the facts."""
    loud = np.array([1.4, 1.05, 2.8][: count + 1])
    quiet = np.array([1.0, 0.6, 2.0][: count + 1])
    turns = np.concatenate([np.tile(loud, (16, 1)), np.tile(quiet, (24, 1))])
    repetitions = np.stack([loud / 1.4, quiet])
    samples = Samples(turns, np.arange(20) >= 8, repetitions, 1, True, 9.0, 4.5)
    monkeypatch.setattr(InterleavedTiming, "run", lambda self: samples)
    path = exported[".onnx"]
    found = paired_timings(get_target("onnxruntime"), [path] * count, path)
    assert [t.ratio for t in found] == [0.6, 2.0][:count]
    assert [t.latency_ms for t in found] == [0.6, 2.0][:count]
    for timing, ratio in zip(found, [0.6, 2.0], strict=False):
        assert timing.disturbed
        assert timing.notes
        assert (timing.baseline_ms, timing.rounds, timing.seconds) == (1.0, 12, 9.0)
        assert timing.facts["waited_s"] == 4.5
        assert timing.facts["rounds_left_out"] == 8
        assert timing.facts["repetitions"][1] == ratio


def test_the_quiet_speed_that_it_learns_is_that_of_the_baseline(exported: dict[str, Path]) -> None:
    """In the same unit as the timing: a factor of ten is beyond what any busy machine does."""
    target, path = get_target({"threads": 1, "batch": 64}), exported[".onnx"]
    quiet = QuietSpeed()
    found = paired_timing(target, path, path, plan=_SHORT, quiet=quiet)
    assert len(quiet.recent) == len(found.facts["repetitions"]) >= 2
    assert 0.1 < min(quiet.recent) / found.baseline_ms < 10


def test_the_lock_is_held_for_timing_alone(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while a file is opened; in pauses, too, for computing would go on in them."""
    target, path = get_target("onnxruntime"), exported[".onnx"]
    seen: list[tuple[str, bool]] = []

    def note(what: str) -> None:
        seen.append((what, lock._lock().is_locked))

    opened = type(target).open
    monkeypatch.setattr(
        type(target), "open", lambda self, path: (note("open"), opened(self, path))[1]
    )
    monkeypatch.setattr(sampling, "take_round", lambda *a: (note("round"), take_round(*a))[1])
    monkeypatch.setattr(
        taking,
        "InterleavedTiming",
        partial(InterleavedTiming, pause=lambda seconds: note("pause")),
    )
    paired_timing(target, path, path, plan=_SHORT)
    assert set(seen) == {("open", False), ("round", True), ("pause", True)}


def test_a_record_says_where_and_how_it_was_taken(exported: dict[str, Path]) -> None:
    target = get_target({"threads": 1, "batch": 2})
    path = exported[".onnx"]
    found = paired_timing(target, path, path, plan=_SHORT)
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
    assert _size(file) == 110


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
    assert len(both["facts"]["repetitions"]) >= 2


def test_given_inputs_are_the_ones_that_run(exported: dict[str, Path]) -> None:
    target = get_target("onnxruntime")
    wrong = [np.zeros((1, 3, 9), np.float32)]
    with (
        closing(target.open(exported[".onnx"])) as session,
        pytest.raises(InputError, match="shape"),
    ):
        session.run(wrong)
    with pytest.raises(InputError, match="shape"):
        paired_timing(target, exported[".onnx"], exported[".onnx"], inputs=wrong, plan=_SHORT)


def test_an_absent_file_is_an_input_error(exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model file"):
        bench(exported[".onnx"], tmp_path / "absent.onnx", plan=_SHORT)


def test_how_long_a_file_is_timed_may_be_limited(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seconds that rounds may take are told; a plan that takes less stays as it is."""
    file, target = exported[".onnx"], get_target("onnxruntime")
    for limit, allowed in (("0.2", 0.2), ("5", 1.0), ("", 1.0)):
        monkeypatch.setenv("AUTOCOMPRESS_TIMING_S", limit)
        found = paired_timing(target, file, file, plan=Plan(max_seconds=1.0, apart_s=0.0))
        assert found.facts["plan"]["max_seconds"] == allowed
    monkeypatch.setenv("AUTOCOMPRESS_TIMING_S", "short")
    with pytest.raises(InputError, match="AUTOCOMPRESS_TIMING_S"):
        paired_timing(target, file, file)

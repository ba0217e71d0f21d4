"""Costs beside the latency: what is measured where it is asked for, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.errors import InputError, MeasurementError
from autocompress.measure import extras, joules
from autocompress.measure.energy import no_energy
from autocompress.measure.extras import ExtraCosts
from autocompress.measure.joules import energy_mj
from autocompress.measure.latency import Timing, paired_timing
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import Plan
from autocompress.targets import get_target
from autocompress.targets.base import Target

P99, ENERGY, SAMPLE = "latency_p99_ms", "energy_mj", "sample_ms"


def timing(p99: float | None = 3.0) -> Timing:
    figures = {"latency_ms": 2.0, "iqr_ms": 0.1, "baseline_ms": 4.0, "baseline_iqr_ms": 0.1}
    ratios = {"ratio": 0.5, "ratio_low": 0.49, "ratio_high": 0.51, "confidence": 0.95}
    counts = {"noisy": False, "rounds": 12, "seconds": 1.0}
    sizes = {"size_bytes": 1, "baseline_size_bytes": 2}
    return Timing(**figures, **ratios, **counts, **sizes, p99_ms=p99, baseline_p99_ms=5.0)


def test_the_percentile_lies_as_far_over_the_studys_latency_as_in_the_rounds(
    tmp_path: Path,
) -> None:
    costs = ExtraCosts(get_target("onnxruntime"))
    asked = (tmp_path, tmp_path, timing(), 10.0)
    assert costs.after_timing(*asked, {"latency_ms": 20.0}) == {P99: pytest.approx(15.0)}
    assert costs.after_timing(tmp_path, tmp_path, timing(), 20.0) == {P99: pytest.approx(25.0)}
    few = (tmp_path, tmp_path, timing(None), 10.0, {"latency_ms": 20.0})
    assert costs.after_timing(*few) == {}
    with pytest.raises(MeasurementError, match="needs 100 inferences"):
        ExtraCosts(get_target("onnxruntime"), frozenset([P99])).after_timing(*few)


def test_throughput_at_the_batch_of_the_latency_follows_from_it(tmp_path: Path) -> None:
    costs = ExtraCosts(get_target({"batch": 4}), frozenset([SAMPLE]))
    found = costs.after_timing(tmp_path, tmp_path, timing(None), 10.0, {SAMPLE: 9.0})
    assert found == {SAMPLE: 2.5}


def test_throughput_is_measured_at_a_batch_and_threads_of_ones_choice(
    exported: dict[str, Path], wide_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = get_target({"throughput": {"batch": 8, "threads": 2}})
    assert target.describe()["throughput"] == {"batch": 8, "threads": 2}
    seen: list[tuple[int, int]] = []

    def watched(where: Target, *files: Path, plan: Plan, quiet: QuietSpeed) -> Timing:
        seen.append((where.config.batch, where.config.threads))
        return paired_timing(where, *files, plan=Plan(max_seconds=0.3))

    monkeypatch.setattr(extras, "paired_timing", watched)
    costs = ExtraCosts(target, frozenset([SAMPLE]))
    small, wide = exported[".onnx"], wide_file
    base = costs.after_timing(wide, wide, timing(None), 1.0)
    found = costs.after_timing(small, wide, timing(None), 1.0, base)
    assert seen == [(8, 2), (8, 2)]
    alone = paired_timing(
        get_target({"batch": 8, "threads": 2}), small, wide, plan=Plan(max_seconds=0.5)
    )
    assert found[SAMPLE] / base[SAMPLE] == pytest.approx(alone.ratio, rel=0.5)
    assert found[SAMPLE] < base[SAMPLE]


class Meter:
    """One watt, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0

    def call(self) -> None:
        self.now += 0.01

    def joules(self, work: Callable[[], object]) -> float:
        begin = self.now
        work()
        return self.now - begin


def test_energy_is_that_of_one_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 ms at one watt are 10 mJ; of a call that holds four inferences, a quarter each."""
    meter = Meter()
    monkeypatch.setattr(joules, "energy_meter", lambda: meter)
    monkeypatch.setattr(joules, "warm_up", lambda call: 0.01)
    assert energy_mj(meter.call, 1) == pytest.approx(10.0)
    assert energy_mj(meter.call, 4) == pytest.approx(2.5)


def test_energy_is_measured_where_the_machine_tells_it(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter()
    monkeypatch.setattr(joules, "energy_meter", lambda: meter)
    monkeypatch.setattr("autocompress.measure.energy.energy_meter", lambda: meter)
    target = get_target("onnxruntime")
    assert no_energy(target) == ""
    costs = ExtraCosts(target, frozenset([ENERGY]))
    costs.refuse()
    file = exported[".onnx"]
    assert costs.after_timing(file, file, timing(None), 1.0)[ENERGY] == 0.0  # its clock stands


def test_a_limit_on_energy_that_nothing_tells_is_refused_with_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = "its counters of energy may be read by root alone: `sudo chmod a+r x`"
    monkeypatch.setattr("autocompress.measure.energy.energy_meter", lambda: reason)
    with pytest.raises(InputError, match=r"cannot be limited here.*sudo chmod.*latency<="):
        ExtraCosts(get_target("onnxruntime"), frozenset([ENERGY])).refuse()
    ExtraCosts(get_target("onnxruntime")).refuse()


def test_a_table_tells_the_median_alone(tmp_path: Path) -> None:
    target = get_target({"table": str(tmp_path / "table.json")})
    with pytest.raises(InputError, match=r"median latency alone, not energy and latency_p99"):
        ExtraCosts(target, frozenset([ENERGY, P99, "peak_memory_bytes"])).refuse()
    ExtraCosts(target, frozenset(["peak_memory_bytes"])).refuse()


def test_a_limit_on_memory_that_the_system_does_not_tell_is_said(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "peak_memory_bytes", lambda target, path: None)
    file = exported[".onnx"]
    assert ExtraCosts(get_target("onnxruntime")).memory(file) == {}
    with pytest.raises(MeasurementError, match="does not tell"):
        ExtraCosts(get_target("onnxruntime"), frozenset(["peak_memory_bytes"])).memory(file)


def test_the_worst_of_several_targets_is_the_largest_share_of_their_own_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [get_target({"threads": n}) for n in (2, 3)]
    there = {2: (0.4, 8.0), 3: (0.7, 6.0)}  # share, and the uncompressed model's ms

    def made(where: Target, path: Path, base: Path, *, plan: Plan, quiet: QuietSpeed) -> Timing:
        ratio, ms = there[where.config.threads]
        return replace(timing(), ratio=ratio, baseline_ms=ms)

    monkeypatch.setattr(extras, "paired_timing", made)
    costs = ExtraCosts(get_target("onnxruntime"), others=others)
    costs.refuse()
    first = replace(timing(None), baseline_p99_ms=None)
    base = costs.after_timing(tmp_path, tmp_path, first, 4.0)
    assert base == {"latency_2_ms": 8.0, "latency_3_ms": 6.0, "latency_worst": 1.0}
    found = costs.after_timing(tmp_path, tmp_path, timing(None), 2.0, base)
    wanted = {"latency_2_ms": 0.4 * 8.0, "latency_3_ms": 0.7 * 6.0, "latency_worst": 0.7}
    assert found == pytest.approx(wanted)
    there.update({3: (0.2, 6.0)})  # the first target's own share, 0.5, is the worst now
    assert costs.after_timing(tmp_path, tmp_path, timing(None), 2.0, base)["latency_worst"] == 0.5


def test_further_targets_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_target("onnxruntime")
    with pytest.raises(InputError, match=r"open the same files.*\.onnx files.*\.pt2.*--target"):
        ExtraCosts(first, others=[get_target("torch")]).refuse()
    with pytest.raises(InputError, match=r"latency_3_ms needs further targets.*also_on"):
        ExtraCosts(first, frozenset(["latency_3_ms"]), [get_target("onnxruntime")]).refuse()

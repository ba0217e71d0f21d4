"""Building the latency model: its cache, and tables from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_times import RULES, kernel_ms, random_policies, true_ms

from autocompress.errors import ExportError
from autocompress.estimate import latency_model as module
from autocompress.estimate import whole_models
from autocompress.estimate.kernel_table import KernelTable
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import LatencyModel, choose_variants
from autocompress.measure.latency import Timing
from autocompress.measure.quiet import QuietSpeed
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
from autocompress.policy.space import Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.targets import get_target


class Counted:
    """Counts what building asks for, and times models by the formula."""

    def __init__(self, plan: LayerPlan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan, self.folder = plan, folder
        self.exported: dict[Path, Policy] = {}
        self.kernels = 0
        monkeypatch.setattr(whole_models, "paired_timings", self.paired_timings)
        monkeypatch.setattr(module, "measure_kernels", self.measure)

    def export(self, policy: Policy) -> Path:
        path = self.folder / f"{len(self.exported)}.onnx"
        path.write_bytes(b"")
        self.exported[path] = policy
        return path

    def paired_timings(
        self, target: Any, files: Any, baseline: Path, *, plan: Any, quiet: QuietSpeed
    ) -> list[Timing]:
        base = true_ms(self.plan, Policy())
        times = [true_ms(self.plan, self.exported[f]) for f in files]
        quiet.note(base)
        return [
            Timing(t, 0, base, 0, t / base, t / base, t / base, 0.95, False, 9, 1.0, 1, 1)
            for t in times
        ]

    def measure(
        self, target: Any, kernels: Any, cache_dir: Path, *, footprint: int, progress: Any
    ) -> KernelTable:
        self.kernels += 1
        table = KernelTable({k.key: kernel_ms(k) for k in kernels})
        module.keep(module.table_path(target, cache_dir, footprint), table.as_dict())
        return table


class LoudAtFirst(Counted):
    """The first six models are timed on a disturbed machine, before its quiet speed is known."""

    calls = 0

    def paired_timings(
        self, target: Any, files: Any, baseline: Path, *, plan: Any, quiet: QuietSpeed
    ) -> list[Timing]:
        self.calls += 1
        found = super().paired_timings(target, files, baseline, plan=plan, quiet=quiet)
        if self.calls > 1:
            return found
        quiet.recent[-1] *= 1.4
        return [replace(t, baseline_ms=1.4 * t.baseline_ms, ratio=1.25 * t.ratio) for t in found]


def test_models_that_were_timed_before_the_machine_was_quiet_are_timed_again(
    plan: LayerPlan,
    space: Space,
    inventory: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loud = LoudAtFirst(plan, tmp_path, monkeypatch)
    quiet = QuietSpeed()
    target = get_target("onnxruntime")
    cache = tmp_path / "cache"
    model = LatencyModel.build(target, inventory, space, loud.export, cache, quiet=quiet)
    base = true_ms(plan, Policy())
    assert len(loud.exported) == 1 + 24 + 6
    assert [m.ratio for m in model.measured] == [
        pytest.approx(true_ms(plan, m.policy) / base) for m in model.measured
    ]
    assert model.reference_ms == pytest.approx(base)
    # who reads the cache knows the quiet speed as well
    later = QuietSpeed()
    LatencyModel.build(target, inventory, space, loud.export, cache, quiet=later)
    assert later.disturbed(1.2 * base)
    assert not later.disturbed(base)


def test_models_that_take_long_to_export_are_fewer(
    plan: LayerPlan, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that was begun is finished, and holds uniform policies and random ones."""
    counted = Counted(plan, tmp_path, monkeypatch)
    policies = choose_variants(space, 24)
    seconds = iter(range(0, 10_000, 35))
    ratios, _ = whole_models.time_variants(
        get_target("onnxruntime"),
        policies,
        counted.export(Policy()),
        counted.export,
        QuietSpeed(),
        lambda text, done: None,
        clock=lambda: next(seconds),
    )
    places = [policies.index(policy) for policy in ratios]
    assert sorted(places) == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]


class Failing(Counted):
    """Some models cannot be exported, others do not run: each so many-th that is chosen."""

    def __init__(self, *args: Any, space: Space, bad: int, stuck: int) -> None:
        super().__init__(*args)
        self.bad, self.stuck = bad, stuck
        self.places = {p.digest: i for i, p in enumerate(choose_variants(space, 24), 1)}
        self.stuck_files: set[Path] = set()

    def export(self, policy: Policy) -> Path:
        place = self.places.get(policy.digest, 0)
        if place and place % self.bad == 0:
            raise ExportError("no exporter takes it")
        path = super().export(policy)
        if place and place % self.stuck == 0:
            self.stuck_files.add(path)
        return path

    def paired_timings(
        self, target: Any, files: Any, baseline: Path, *, plan: Any, quiet: QuietSpeed
    ) -> list[Timing]:
        if self.stuck_files & {*files}:
            raise RuntimeError("the runtime does not open it")
        return super().paired_timings(target, files, baseline, plan=plan, quiet=quiet)


@pytest.mark.parametrize(("bad", "stuck"), [(24, 99), (5, 7), (2, 3), (99, 2)])
def test_models_that_fail_are_left_out_and_named(
    bad: int,
    stuck: int,
    plan: LayerPlan,
    space: Space,
    inventory: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = Failing(plan, tmp_path, monkeypatch, space=space, bad=bad, stuck=stuck)
    target = get_target("onnxruntime")
    model = LatencyModel.build(target, inventory, space, failing.export, tmp_path / "cache")
    asked = range(1, 25)
    fine = [i for i in asked if i % bad and i % stuck]
    chosen = choose_variants(space, 24)
    assert [m.policy for m in model.measured] == [chosen[i - 1] for i in fine]
    assert not any(path.exists() for path in failing.exported)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 24 - len(fine)
    for i in (i for i in asked if i not in fine):
        layer = next(iter(chosen[i - 1]))
        assert any(layer in text for text in said)


def test_where_every_model_fails_the_reason_and_a_remedy_are_said(
    plan: LayerPlan,
    space: Space,
    inventory: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing = Failing(plan, tmp_path, monkeypatch, space=space, bad=1, stuck=99)
    target = get_target("onnxruntime")
    with pytest.raises(ExportError, match=r"no exporter takes it.*target\.runtime"):
        LatencyModel.build(target, inventory, space, failing.export, tmp_path / "cache")


def test_a_second_build_reads_the_cache(
    plan: LayerPlan,
    space: Space,
    inventory: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(plan, tmp_path, monkeypatch)
    target = get_target("onnxruntime")

    def build(which: Space, **target_config: Any) -> LatencyModel:
        where = get_target({"runtime": "onnxruntime", **target_config}) if target_config else target
        return LatencyModel.build(where, inventory, which, counted.export, tmp_path / "cache")

    first = build(space)
    assert len(counted.exported) == 25
    assert not any(path.exists() for path in counted.exported)
    second = build(space)
    assert (len(counted.exported), counted.kernels) == (25, 1)
    policies = random_policies(space, 10, seed=2)
    assert [second.predict(p) for p in policies] == [first.predict(p) for p in policies]
    errors = [abs(first.predict(p)[0] / true_ms(plan, p) - 1) for p in policies]
    assert np.mean(errors) < 0.03
    narrower = SpaceConfig.read({"rules": [{**RULES, "prune_ratio": [0, 0.5]}]}).bind(inventory)
    build(narrower)
    assert counted.kernels == 2
    build(space, threads=2)
    assert counted.kernels == 3

"""A study's evaluator on a real model: packing for another device, and judging by its table."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_network import images, small
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.other_device import device_model
from autocompress.estimate.pack import pack_kernels
from autocompress.machine.runner_files import runner_files
from autocompress.model.inventory import take_inventory
from autocompress.model.kernels import Kernel
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.recover.device import Place
from autocompress.results.trial import Phase, Trial
from autocompress.run.evaluator import make_evaluator
from autocompress.run.profile import operator_times
from autocompress.targets import get_target
from autocompress.task.data import Data, Split

_RULES = {"match": "*", "prune_ratio": [0, 0.5], "weight_bits": [32, 8], "activation_bits": [32, 8]}
_SPACE = SpaceConfig.read({"rules": [_RULES]})
_POLICY = Policy({"first": LayerPolicy(prune_ratio=0.5), "last": LayerPolicy(prune_ratio=0.5)})


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return piped(small())


def piped(model: nn.Module) -> Pipeline:
    split = Split(images(40), torch.arange(40) % 5)
    settings = CompressionSettings(calibration_images=32, sequential_images=32)
    inventory = take_inventory(model, images())
    bank = LayerBank.build(model, inventory, split, settings)
    return Pipeline(
        model, Data(split, split, split, classes=5), inventory, bank, settings, Schedule(epochs=0)
    )


def elsewhere_ms(kernel: Kernel) -> float:
    """A device a thousand times slower than any that runs this test."""
    return 10.0 + 1e-3 * kernel.macs


@pytest.fixture
def table(tmp_path: Path, pipeline: Pipeline) -> Path:
    plan = LayerPlan(pipeline.inventory, pipeline.settings)
    kernels = plan.space_kernels(_SPACE.bind(pipeline.inventory))
    data: dict[str, Any] = {
        "version": 1,
        "architecture": pipeline.inventory.architecture,
        "facts": {"machine": {"cpu": "a slow one"}},
        "kernels": {k.key: elsewhere_ms(k) for k in kernels},
        "baseline_ms": sum(elsewhere_ms(k) for k in plan.kernels([Policy()])),
        "models": [],
    }
    path = tmp_path / "table.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests invent is no device that anybody knows."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))


def test_with_a_table_latencies_are_those_of_its_device(
    pipeline: Pipeline, table: Path, tmp_path: Path
) -> None:
    target = get_target({"runtime": "onnxruntime", "table": str(table)})
    evaluator = make_evaluator(pipeline, target, tmp_path / "work")
    model = device_model(table, pipeline.inventory, pipeline.settings, table.parent / "cache")
    evaluator.estimator.predict_with(model)
    found, baseline = evaluator.evaluate(_POLICY), evaluator.baseline
    assert baseline["latency_ms"] == model.predict(Policy())[0] > 40
    assert (found["latency_ms"], found.spread["latency_ms"]) == model.predict(_POLICY)
    assert found["latency_ms"] < baseline["latency_ms"]
    assert evaluator.estimate(_POLICY)["latency_ms"] == found["latency_ms"]
    assert found.context["target"]["table"]["machine"]["cpu"] == "a slow one"
    # what this machine measured must not leak into the other device's model
    evaluator.observe(Trial(0, _POLICY, measurement=found))
    assert model.measured == []
    assert not any("slower" in problem for problem in found.context["problems"])


def test_without_a_table_latencies_are_measured_here(pipeline: Pipeline, tmp_path: Path) -> None:
    evaluator = make_evaluator(pipeline, get_target("onnxruntime"), tmp_path / "work")
    found = evaluator.evaluate(_POLICY)
    timing = found.context["timing"]
    assert found["latency_ms"] == timing["ratio"] * evaluator.baseline["latency_ms"]
    assert len(timing["facts"]["repetitions"]) >= 2
    assert "table" not in found.context["target"]


def test_a_disturbed_timing_is_noted_and_teaches_nothing(
    pipeline: Pipeline, table: Path, tmp_path: Path
) -> None:
    evaluator = make_evaluator(pipeline, get_target("onnxruntime"), tmp_path / "work")
    model = device_model(table, pipeline.inventory, pipeline.settings, table.parent / "cache")
    evaluator.estimator.predict_with(model)
    told = evaluator.evaluate(_POLICY)
    assert model.measured == []  # a measurement is no trial
    evaluator.observe(Trial(0, _POLICY, measurement=told))
    assert [m.policy.layers for m in model.measured] == [_POLICY.layers]
    assert not any("slowed" in note for note in told.context["notes"])
    evaluator.measurer.quiet_speed.recent.extend(
        [1e-9] * 30
    )  # no machine will ever be that quick again
    other = Policy({name: replace(p, prune_ratio=0.25) for name, p in _POLICY.layers.items()})
    found = evaluator.evaluate(other)
    assert found.context["timing"]["disturbed"]
    assert found.context["timing"]["rounds"] >= 6
    assert any("slowed" in note for note in found.context["notes"])
    evaluator.observe(Trial(1, other, Phase("verify"), measurement=found))
    assert len(model.measured) == 1
    # the same policy once more: its quiet timing stands for it, and is taught once
    again = evaluator.evaluate(_POLICY)
    assert again.context["timing"]["ratio"] == told.context["timing"]["ratio"]
    assert any("slowed" in note for note in again.context["notes"])
    evaluator.observe(Trial(2, _POLICY, Phase("verify"), measurement=again))
    assert len(model.measured) == 1


def test_the_evaluator_packs_what_the_runner_needs(pipeline: Pipeline, tmp_path: Path) -> None:
    evaluator = make_evaluator(pipeline, get_target("onnxruntime"), tmp_path / "work")
    space = _SPACE.bind(pipeline.inventory)
    path = pack_kernels(
        tmp_path / "kernels.zip",
        pipeline.inventory,
        space,
        evaluator.measurer.target,
        evaluator.export_variant,
        evaluator.measurer.baseline_file,
        settings=pipeline.settings,
    )
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("manifest.json"))
    listed = {part["file"] for part in manifest["kernels"] + manifest["models"]}
    assert names == listed | {manifest["baseline"], "manifest.json", *runner_files()}
    keys = [key for part in manifest["kernels"] for key in part["keys"]]
    plan = LayerPlan(pipeline.inventory, pipeline.settings)
    assert {k.key for k in plan.space_kernels(space)} <= set(keys)
    assert len(keys) == len(set(keys))
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["baseline.onnx"]


def test_screening_gives_the_divergence_of_the_outputs(tmp_path: Path) -> None:
    """Beside torch's own formula, in 16 bits where this processor screens in them."""
    model = small()
    # a random network's outputs hardly differ: scaled up, and none left that always wins
    model.head.weight.data *= 300
    with torch.inference_mode():
        model.head.bias.data -= model(images(40)).mean(0)
    pipeline = piped(model)
    evaluator = make_evaluator(pipeline, get_target("onnxruntime"), tmp_path, screen_images=32)
    inputs = pipeline.data.train.sample(32, pipeline.settings.seed + 1).inputs(32)
    with torch.inference_mode(), Place.of(Schedule(device="cpu")).autocast():
        ours = pipeline.rough(_POLICY)(inputs).float().log_softmax(-1)
        theirs = pipeline.model(inputs).float().log_softmax(-1)
    wanted = torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    found = evaluator.screen(_POLICY, 32)
    assert wanted > 1e-3  # far above what 16 bits add
    assert found.kl == pytest.approx(float(wanted), rel=0.05)
    assert found.images == 32


def test_operator_times_name_every_layer(pipeline: Pipeline, tmp_path: Path) -> None:
    evaluator = make_evaluator(pipeline, get_target("onnxruntime"), tmp_path / "work")
    times = operator_times(evaluator)
    assert set(times) == {"first", "deep", "last", "head"}
    assert all(ms > 0 for ms in times.values())

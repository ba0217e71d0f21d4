"""What the parts of a study agree on: the factors that ``auto`` stands for, and the inventory."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_networks import hook_macs

from autocompress.errors import InputError
from autocompress.measure.latency import Timing
from autocompress.model import cut_check
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.study import StudyConfig, read_study
from autocompress.targets.onnx_runtime import OnnxRuntimeTarget

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_0_1"


@pytest.fixture
def parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[Assembly]:
    """A study on trained weights, assembled twice, as by a search and by its worker or replay."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    study = small_study(request.param)
    return [assemble(study, tmp_path / "models") for _ in range(2)]


def small_study(space: object) -> StudyConfig:
    """A study on trained weights."""
    return read_study(
        {
            "name": "small",
            "model": {
                "factory": "autocompress.workloads.models:digits_resnet",
                "args": {"width": 8},
                "checkpoint": str(FIXTURE / "weights.safetensors"),
            },
            "data": {"factory": "autocompress.workloads.data:digits"},
            "space": space,
            "settings": {"calibration_images": 64},
        }
    )


def test_a_space_that_the_targets_files_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    rule = {"match": "*", "weight_bits": [32, 4], "weight_block": [0, 32]}
    study = small_study({"name": "blocks", "rules": [rule]})
    assert any("weight_block" in c.levels[0] for c in assemble(study, tmp_path).space.choices)
    monkeypatch.setattr(OnnxRuntimeTarget, "weight_blocks", False)
    with pytest.raises(InputError, match=r"weight_block: 0`\. Runtimes here that do: .*torch"):
        assemble(study, tmp_path)
    halves = study.changed(settings={"half_format": "bfloat16"})
    with pytest.raises(InputError, match=r"bfloat16` asks\. Runtimes here that do: torch"):
        assemble(halves, tmp_path)


@pytest.mark.parametrize("parts", ["low_rank"], indirect=True)
def test_policies_of_a_space_name_their_factors(parts: list[Assembly]) -> None:
    first, second = parts
    assert first.space.choices == second.space.choices
    policy = first.space.decode(first.space.uniform(rank_ratio=0.5))
    assert "spatial" in {p.factorization for p in policy.layers.values()}
    assert "auto" not in {p.factorization for p in policy.layers.values()}
    again = Policy.from_dict(policy.as_dict())  # what a recipe or a journal holds
    mine, theirs = first.pipeline.stitch(policy).module, second.pipeline.stitch(again).module
    for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("parts", ["prune"], indirect=True)
def test_auto_in_a_policy_of_ones_own_costs_what_it_is_built_as(parts: list[Assembly]) -> None:
    """The space offers no ranks, so that nothing asked the bank before."""
    one, _ = parts
    auto = LayerPolicy(rank_ratio=0.5, factorization="auto")
    policy = Policy({layer.name: auto for layer in one.inventory.layers})
    module = one.pipeline.stitch(policy).module
    counted = sum(hook_macs(module, one.data.train.inputs(1)).values())
    assert policy_cost(one.inventory, policy, one.study.settings).macs == counted
    assert one.inventory is one.pipeline.inventory is one.pipeline.bank.inventory


@pytest.mark.parametrize("parts", ["prune"], indirect=True)
def test_a_worker_takes_the_inventory_that_the_search_took(
    parts: list[Assembly], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slower process would run out of time while it tries cuts, and leave more groups alone."""
    first, _ = parts
    known = {"accuracy": 0.9, "latency_ms": 1.0, "size_bytes": 1000.0}
    first.evaluator.measurer.set_baseline(Measurement(known))
    factory = pickle.loads(pickle.dumps(first.evaluator_factory()))
    monkeypatch.setattr(cut_check, "MAX_SECONDS", -1.0)
    worker = factory().builder.pipeline.inventory
    assert worker.channel_groups == first.inventory.channel_groups != ()
    assert not take_inventory(first.model, first.data.train.inputs(1)).channel_groups


@pytest.mark.parametrize("parts", ["prune"], indirect=True)
def test_a_worker_on_another_model_is_refused(parts: list[Assembly], tmp_path: Path) -> None:
    first, _ = parts
    other = dataclasses.replace(first.inventory, weights="other")
    with pytest.raises(InputError, match="same weights at every call"):
        assemble(first.study, tmp_path, inventory=other)


@pytest.mark.parametrize("parts", ["prune"], indirect=True)
def test_a_disturbed_timing_gives_way_to_a_quieter_one_of_the_same_policy(
    parts: list[Assembly], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovered model has other weights, in layers of the same sizes."""
    evaluator = parts[0].evaluator
    found = {"ratio": 1.0, "disturbed": False}

    def timed(paths: Sequence[Path], *, max_seconds: float) -> list[Timing]:
        return [one() for _ in paths]

    def one() -> Timing:
        ratio = float(found["ratio"])
        plain = {"latency_ms": 2 * ratio, "iqr_ms": 0.1, "baseline_ms": 2.0, "baseline_iqr_ms": 0.1}
        return Timing(
            **plain,
            ratio=ratio,
            ratio_low=ratio - 0.01,
            ratio_high=ratio + 0.01,
            confidence=0.95,
            noisy=False,
            rounds=12,
            seconds=1.0,
            size_bytes=1,
            baseline_size_bytes=1,
            disturbed=bool(found["disturbed"]),
        )

    monkeypatch.setattr(evaluator.measurer, "timings", timed)
    base = evaluator.baseline["latency_ms"]
    group = parts[0].inventory.channel_groups[0]
    known, new = (
        Policy(dict.fromkeys(group.producers, LayerPolicy(prune_ratio=ratio)))
        for ratio in (0.5, 0.25)
    )
    found |= {"ratio": 0.5}
    first = evaluator.evaluate(known)
    evaluator.observe(Trial(0, known, measurement=first))
    found |= {"ratio": 0.6, "disturbed": True}
    again, other = evaluator.evaluate(known), evaluator.evaluate(new)
    assert first["latency_ms"] == again["latency_ms"] == pytest.approx(0.5 * base)
    assert other["latency_ms"] == pytest.approx(0.6 * base)
    assert not again.context["timing"]["disturbed"]
    assert any("in a quieter moment" in note for note in again.context["notes"])
    assert other.context["timing"]["disturbed"]
    # what was itself disturbed is no measure for later ones
    evaluator.observe(Trial(1, new, measurement=other))
    found |= {"ratio": 0.7}
    assert evaluator.evaluate(new)["latency_ms"] == pytest.approx(0.7 * base)

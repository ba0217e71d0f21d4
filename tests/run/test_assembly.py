"""What the parts of a study agree on: the factors that ``auto`` stands for, and the inventory."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from small_networks import hook_macs

from autocompress.errors import InputError
from autocompress.model import trial
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.metric import Measurement
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.study import read_study

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_0_1"


@pytest.fixture
def parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[Assembly]:
    """A study on trained weights, assembled twice, as by a search and by its worker or replay."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    study = read_study(
        {
            "name": "small",
            "model": {
                "factory": "autocompress.workloads.models:digits_resnet",
                "args": {"width": 8},
                "checkpoint": str(FIXTURE / "weights.safetensors"),
            },
            "data": {"factory": "autocompress.workloads.data:digits"},
            "space": request.param,
            "settings": {"calibration_images": 64},
        }
    )
    return [assemble(study, tmp_path / "models") for _ in range(2)]


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
    monkeypatch.setattr(trial, "MAX_SECONDS", -1.0)
    worker = factory().builder.pipeline.inventory
    assert worker.channel_groups == first.inventory.channel_groups != ()
    assert not take_inventory(first.model, first.data.train.inputs(1)).channel_groups


@pytest.mark.parametrize("parts", ["prune"], indirect=True)
def test_a_worker_on_another_model_is_refused(parts: list[Assembly], tmp_path: Path) -> None:
    first, _ = parts
    other = dataclasses.replace(first.inventory, weights="other")
    with pytest.raises(InputError, match="same weights at every call"):
        assemble(first.study, tmp_path, inventory=other)

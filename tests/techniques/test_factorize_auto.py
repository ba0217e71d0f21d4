"""Which factors `factorization: auto` picks: those that err least at equal cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_networks import data, example, make
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import RANK_STEPS, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.policy.values import Factorization
from autocompress.task.data import Data
from autocompress.techniques.builtin.low_rank import LowRank
from autocompress.techniques.builtin.sparsify import Sparsify
from autocompress.techniques.factorize import (
    METHODS,
    best_factors,
    factorize,
)
from autocompress.techniques.factors import factor_ranks
from autocompress.techniques.moments import rows

Build = Callable[..., LayerBank]


def errors_that_run(
    layer: nn.Conv2d, spec: LayerSpec, ratio: float, moments: Tensor | None, x: Tensor
) -> dict[str, float]:
    """Squared error of every method's real outputs on real inputs."""
    with torch.no_grad():
        return {
            m: float(
                (
                    factorize(layer, spec, LayerPolicy(rank_ratio=ratio, factorization=m), moments)(
                        x
                    )
                    - layer(x)
                )
                .square()
                .sum()
            )
            for m in METHODS
        }


def check_auto(layer: nn.Conv2d, spec: LayerSpec, x: Tensor) -> tuple[Factorization, ...]:
    """``auto`` against all methods by brute force, at every ratio that is compared."""
    found = rows(layer, x)[0]
    moments = found.T @ found / len(found)
    chosen = best_factors(layer, spec, moments)
    with torch.no_grad():
        noise = 1e-6 * float(layer(x).square().sum())  # of single precision
    for step, name in enumerate(chosen, 1):
        errors = errors_that_run(layer, spec, step / RANK_STEPS, moments, x)
        assert errors[name] <= min(errors.values()) * (1 + 1e-3) + noise, (spec.name, step, errors)
    return chosen


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride"),
    [
        (12, 16, (3, 3), (1, 1)),
        (4, 24, (3, 5), (1, 1)),
        (16, 6, (5, 5), (2, 2)),
        (3, 8, (1, 3), (2, 1)),
    ],
)
def test_auto_errs_least_on_random_layers(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    torch.manual_seed(inputs)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=1)
    x = torch.randn(4, inputs, 9, 8)
    (spec,) = take_inventory(nn.Sequential(layer).eval(), x).layers
    check_auto(layer, spec, x)


def test_auto_finds_the_structure_that_a_kernel_has() -> None:
    """Kernels that one method alone can make at half the rank."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 64, 3, padding=1)
    x = torch.randn(4, 16, 8, 8)
    (spec,) = take_inventory(nn.Sequential(layer).eval(), x).layers
    rank = {
        m: factor_ranks(spec, LayerPolicy(rank_ratio=0.5, factorization=m), 16, 64) for m in METHODS
    }
    (svd,), (spatial,), (inner, outer) = rank["svd"], rank["spatial"], rank["tucker2"]
    kernels: dict[Factorization, Tensor] = {
        "svd": torch.einsum("or,rihw->oihw", torch.randn(64, svd), torch.randn(svd, 16, 3, 3)),
        "spatial": torch.einsum(
            "orw,rih->oihw", torch.randn(64, spatial, 3), torch.randn(spatial, 16, 3)
        ),
        "tucker2": torch.einsum(
            "oa,abhw,bi->oihw",
            torch.randn(64, outer),
            torch.randn(outer, inner, 3, 3),
            torch.randn(inner, 16),
        ),
    }
    for method, kernel in kernels.items():
        with torch.no_grad():
            layer.weight.copy_(kernel)
        assert check_auto(layer, spec, x)[RANK_STEPS // 2 - 1] == method


def test_auto_errs_least_on_trained_layers(resnet20_trained: nn.Module, cifar_data: Data) -> None:
    x = cifar_data.train.inputs(16)
    inventory = take_inventory(resnet20_trained, x[:1])
    for name in ("conv1", "layer1.0.conv2", "layer2.0.conv1"):
        layer = resnet20_trained.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda m, a, s=seen: s.append(a[0]))
        with torch.no_grad():
            resnet20_trained(x)
        handle.remove()
        assert "spatial" in check_auto(layer, inventory.layer(name), seen[0])


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_auto_is_what_the_bank_chose_wherever_it_is_asked(bank: Build, name: str) -> None:
    """In the modules, in the cost and in the space, whose policies name the factors."""
    found = bank(name)
    space = SpaceConfig.read({"rules": [{"rank_ratio": [0.25, 0.5, 1]}]}, where="test").bind(
        found.inventory
    )
    kinds = set()
    for ratio in (0.25, 0.5, 1.0):
        auto = LayerPolicy(rank_ratio=ratio, factorization="auto")
        asked = Policy({layer.name: auto for layer in found.inventory.layers})
        named = space.decode(space.uniform(rank_ratio=ratio))
        assert policy_cost(found.inventory, asked, found.settings) == policy_cost(
            found.inventory, named, found.settings
        )
        mine, theirs = found.stitch(asked).module, found.stitch(named).module
        assert str(mine) == str(theirs)
        assert all(
            torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True)
        )
        kinds |= {p.factorization for p in named.layers.values()}
    assert "spatial" in kinds
    assert kinds <= {None, "spatial", "tucker2"}


def test_the_choice_is_cached_with_the_bank(tmp_path: Path) -> None:
    model, split = make("residual"), data("residual").train
    inventory = take_inventory(model, example("residual"))
    banks = [
        LayerBank.build(model, inventory, split, CompressionSettings(), tmp_path) for _ in range(2)
    ]
    assert len([*tmp_path.iterdir()]) == 1
    assert banks[0].inventory == banks[1].inventory
    chosen = {layer.name: layer.factors for layer in banks[1].inventory.layers}
    assert {name for name, factors in chosen.items() if factors} == {
        *("stem", "conv1", "conv2", "conv3", "conv4")
    }
    assert all(len(factors) in (0, RANK_STEPS) for factors in chosen.values())
    assert banks[1].inventory.architecture == inventory.architecture


def test_the_bank_keeps_what_the_techniques_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = make("residual"), data("residual").train
    inventory = take_inventory(model, example("residual"))
    settled = {"conv1": ("tucker2",) * RANK_STEPS}
    monkeypatch.setattr(LowRank, "settle", lambda self, *seen: {})
    monkeypatch.setattr(Sparsify, "settle", lambda self, *seen: settled)
    bank = LayerBank.build(model, inventory, split, CompressionSettings())
    assert {x.name: x.factors for x in bank.inventory.layers if x.factors} == settled


def test_a_policy_that_does_not_say_is_svd_as_it_always_was(bank: Build) -> None:
    """Recipes, journals and trained weights of earlier versions leave the field out."""
    found = bank("residual")
    silent = Policy.from_dict({"layers": {"conv1": {"rank_ratio": 0.5}}})
    assert silent.as_dict() == {"layers": {"conv1": {"rank_ratio": 0.5}}}
    assert found.inventory.layer("conv1").best_factors(0.5) == "spatial"
    svd = Policy({"conv1": LayerPolicy(rank_ratio=0.5, factorization="svd")})
    assert str(found.stitch(silent).module) == str(found.stitch(svd).module)
    folder = Path(__file__).parent.parent / "fixtures" / "run_0_1" / "run"
    for line in (folder / "trials.jsonl").read_text().splitlines():
        trial = json.loads(line)
        assert Policy.from_dict(trial["policy"]).digest == trial["digest"]

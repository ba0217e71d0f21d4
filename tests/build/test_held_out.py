"""Repairs from few samples: damped as held-out ones ask for, and dropped where they do harm."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from small_networks import data, example, make
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.batch_norm import reestimate
from autocompress.build.held_out import HeldOutDivergence, as_many_as_fit
from autocompress.build.pipeline import Pipeline
from autocompress.build.sequential import sequential_resolve
from autocompress.build.solve import accumulate, refit
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings
from autocompress.results.trial import Phase
from autocompress.task.divergence import SoftmaxKL
from autocompress.task.memory import Memory
from autocompress.task.ready import classification
from autocompress.techniques.compressed import Compressed

FINAL = Phase("recover", 0.0, 1)


def layer_and_samples(count: int) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A layer, and outputs that are its own and as much noise."""
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(64, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(16, 64, generator=generator) / 8)
    x = torch.randn(count, 64, generator=generator)
    noise = torch.randn(count, 16, generator=generator)
    return layer, x, (layer(x) + noise).detach()


@torch.no_grad()
def test_few_samples_do_not_undo_what_a_layer_knows() -> None:
    """The layer is right; 80 noisy samples of it ask 64 weights per output for something else."""
    layer, x, wanted = layer_and_samples(80)
    equations = accumulate(layer, [x[:40], x[40:]], [wanted[:40], wanted[40:]])
    flat = layer.weight.double()
    assert equations.ridge(flat, 0.01) >= 1.0
    fresh = torch.randn(4000, 64, generator=torch.Generator().manual_seed(4))
    right = layer(fresh)
    solved = copy.deepcopy(layer)
    refit(solved, equations, 0.01)
    damped = (solved(fresh) - right).pow(2).mean()
    left = torch.cat([x, torch.ones(80, 1)], 1)
    plain = torch.linalg.lstsq(left, wanted).solution
    undamped = (torch.cat([fresh, torch.ones(4000, 1)], 1) @ plain - right).pow(2).mean()
    assert damped < 0.2 * undamped


@torch.no_grad()
def test_many_samples_are_believed() -> None:
    layer, x, wanted = layer_and_samples(64 * 60)
    equations = accumulate(layer, [x], [wanted])
    assert equations.held is None
    assert equations.ridge(layer.weight.double(), 0.01) == 0.01
    rows = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    torch.testing.assert_close(equations.gram, rows.T @ rows / len(x), atol=1e-5, rtol=1e-5)


def test_what_is_held_out_is_part_of_the_whole() -> None:
    layer, x, wanted = layer_and_samples(100)
    few = accumulate(layer, [x[:30], x[30:]], [wanted[:30], wanted[30:]])
    rows = torch.cat([x, torch.ones(100, 1)], 1).double()
    torch.testing.assert_close(few.gram, rows.T @ rows / 100, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few.cross, rows.T @ wanted.double() / 100, atol=1e-5, rtol=1e-5)
    assert few.held is not None
    own = torch.cat([rows[:7], rows[30:47]])
    torch.testing.assert_close(few.held[0], own.T @ own / 24, atol=1e-5, rtol=1e-5)
    assert few.share == pytest.approx(0.24)


@pytest.mark.parametrize("count", [12, 48, 400])
@pytest.mark.parametrize("name", ["plain", "residual", "depthwise"])
def test_the_repair_that_does_better_on_samples_apart_is_kept(name: str, count: int) -> None:
    model, own = make(name), data(name, count)
    settings = CompressionSettings()
    inventory = take_inventory(model, example(name))
    bank = LayerBank.build(model, inventory, own.train, settings)
    parts = Pipeline(model, own, inventory, bank, settings, Schedule(device="cpu"))
    policy = Policy(
        {
            producer: LayerPolicy(prune_ratio=0.5)
            for group in inventory.channel_groups
            if not group.residual
            for producer in group.producers
        }
    )
    apart = settings.judging(inventory.macs, count)
    order = own.train.sample(count, settings.seed)
    held = order.subset(torch.arange(count - apart, count))
    others = order.subset(torch.arange(count - apart)).inputs()

    def repaired(*, sequential: bool) -> nn.Module:
        stitched: Compressed = bank.stitch(policy)
        if sequential:
            return sequential_resolve(model, stitched, others).module
        reestimate(stitched.module, others)
        return stitched.module

    both = [repaired(sequential=True), repaired(sequential=False)]
    log_wanted = model(held.inputs()).log_softmax(1)
    with torch.no_grad():
        found = [m(held.inputs()).log_softmax(1) for m in both]
    far = [(log_wanted.exp() * (log_wanted - f)).sum(1).mean() for f in found]
    best = 0 if far[0] <= far[1] else 1
    built = parts.build(policy, FINAL)
    kept = built.module.state_dict()
    for key, value in both[best].state_dict().items():
        torch.testing.assert_close(kept[key], value, msg=key)
    assert any("kept apart" in note for note in built.notes) == (best == 1)


def test_a_distance_tells_how_far_outputs_are() -> None:
    distance = HeldOutDivergence(make("plain"), data("plain", 32).train, classification())
    assert distance(make("plain")) == pytest.approx(0.0, abs=1e-6)
    assert distance(make("plain", seed=1)) > 0.01


def test_a_repair_that_cannot_be_judged_is_kept_and_said() -> None:
    """A task whose divergence is undefined on these outputs; the re-solve itself needs none."""

    class Undefined(SoftmaxKL):
        def fitted(self, outputs: object) -> SoftmaxKL:
            raise ValueError("no divergence here")

    model, own = make("plain"), data("plain", 48)
    settings = CompressionSettings()
    inventory = take_inventory(model, example("plain"))
    bank = LayerBank.build(model, inventory, own.train, settings)
    task = replace(classification(), divergence=Undefined())
    parts = Pipeline(
        model, replace(own, task=task), inventory, bank, settings, Schedule(device="cpu")
    )
    policy = Policy({"conv1": LayerPolicy(prune_ratio=0.5)})
    built = parts.build(policy, FINAL)
    assert any("no divergence here" in note for note in built.notes)
    order = own.train.sample(48, settings.seed).subset(torch.arange(39))
    wanted = sequential_resolve(model, bank.stitch(policy), order.inputs()).module
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(built.module.state_dict()[key], value, msg=key)


def test_outputs_without_a_divergence_are_the_farthest() -> None:
    broken = make("plain")
    with torch.no_grad():
        broken.fc2.bias.fill_(float("nan"))
    distance = HeldOutDivergence(make("plain"), data("plain", 32).train, classification())
    assert distance(broken) == math.inf


def test_as_many_are_compared_as_fit_into_memory() -> None:
    """Five logits of four bytes, for three networks: sixty bytes for each input."""
    model, inputs = make("plain"), data("plain", 48).train
    assert as_many_as_fit(model, inputs, 40, Memory(60 * 20)) == 20
    assert as_many_as_fit(model, inputs, 10, Memory(60 * 20)) == 10
    assert as_many_as_fit(model, inputs, 40, Memory(1)) == 8

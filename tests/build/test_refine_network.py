"""The whole network under repair: which inputs it sees, and by what its batch norms normalize."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import data, example, make
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.build.refine import Refinement
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.task.data import Data, Split
from autocompress.task.divergence import SoftmaxKL
from autocompress.task.ready import ready
from autocompress.techniques.compressed import Compressed


def pipeline(count: int) -> Pipeline:
    """A small residual network and as many training inputs."""
    model, own = make("residual"), data("residual", count)
    settings = CompressionSettings(prune_residual=False)
    inventory = take_inventory(model, example("residual"))
    bank = LayerBank.build(model, inventory, own.train, settings)
    return Pipeline(model, own, inventory, bank, settings, Schedule(device="cpu"))


@pytest.mark.parametrize(("asked", "distinct"), [("auto", 160), (40, 32), (10_000, 160)])
def test_the_whole_network_sees_more_inputs_than_the_blocks(asked: Any, distinct: int) -> None:
    """Ten batches of 16 of 400 inputs, of which the blocks have 64 and eight of these judge."""
    parts = pipeline(400)
    seen: list[torch.Tensor] = []

    def augment(stored: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        seen.append(stored.clone())
        return stored

    own = replace(parts.data, augment=augment)
    config = RefineConfig(
        images=64, network_images=asked, block_steps=1, steps=10, batch_size=16, lr=1e-3
    )
    groups = [g for g in parts.inventory.channel_groups if not g.residual]
    half = {p: LayerPolicy(prune_ratio=0.5) for g in groups for p in g.producers}
    solved = parts.stitch(Policy(half))
    Refinement(parts.model, solved, own, parts.task, config).run()
    rows = torch.cat(seen).flatten(1).unique(dim=0)
    assert len(rows) == distinct
    judging = own.train.sample(64).inputs(8).flatten(1)
    assert not (rows[:, None] == judging[None]).all(-1).any()


def test_batch_norms_learn_what_the_repaired_network_gives_them() -> None:
    """In eval mode the network is what it was in training, up to the average over batches."""
    parts = pipeline(512)
    config = RefineConfig(images=512, block_steps=0, steps=200, batch_size=32, network_lr=3e-3)
    shaken = copy.deepcopy(parts.model)
    with torch.no_grad():
        shaken.get_submodule("conv2").weight.mul_(3.0)
    moved = Compressed(shaken, Policy(), parts.settings)
    found = Refinement(parts.model, moved, parts.data, parts.task, config).run()
    assert not any(part.training for part in found.module.modules())
    inputs = parts.data.train.inputs()
    seen: list[torch.Tensor] = []
    norm = found.module.get_submodule("norm2")
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        found.module(inputs)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=0.2, atol=0.2)
    torch.testing.assert_close(norm.running_var, seen[0].var((0, 2, 3)), rtol=0.3, atol=0.1)


class OneByOne(nn.Module):
    """Each sample is normalized by itself: in training mode one value has no variance."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = [self.norm(part) for part in self.one(x).split(1)]
        return self.two(torch.cat(hidden).relu())


def test_batch_norms_that_have_no_batch_keep_their_statistics() -> None:
    torch.manual_seed(0)
    model = OneByOne().eval()
    x = torch.randn(64, 8)
    own = Data(*(Split(x, torch.zeros(64, dtype=torch.long)) for _ in range(3)), classes=5)
    shaken = copy.deepcopy(model)
    with torch.no_grad():
        shaken.two.weight.mul_(0.5)
    config = RefineConfig(images=64, block_steps=0, steps=20, batch_size=16, network_lr=1e-2)
    given = Compressed(shaken, Policy(), CompressionSettings(finish="refine", refine=config))
    found = Refinement(model, given, own, ready("classification"), config).run().module
    assert torch.equal(found.norm.running_mean, model.norm.running_mean)
    with torch.no_grad():
        wanted = model(x)
        far, near = (float(SoftmaxKL()(wanted, m(x)).mean()) for m in (shaken, found))
    assert near < far


def test_blocks_that_went_astray_are_not_where_the_whole_network_begins() -> None:
    parts = pipeline(256)
    shaken = copy.deepcopy(parts.model)
    with torch.no_grad():
        shaken.get_submodule("conv2").weight.mul_(3.0)
    moved = Compressed(shaken, Policy(), parts.settings)
    ends = []
    for lr, block_steps in ((1000.0, 20), (1e-3, 0)):
        config = RefineConfig(
            images=256, block_steps=block_steps, steps=100, batch_size=32, lr=lr, network_lr=3e-3
        )
        ends.append(Refinement(parts.model, moved, parts.data, parts.task, config).run().module)
    assert not torch.equal(ends[1].conv2.weight, shaken.conv2.weight)  # it came nearer
    for one, other in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(one, other)  # as if there had been no blocks


class Listening(SoftmaxKL):
    """Tells at which temperatures a network was taught."""

    heard: list[float]

    def taught(
        self, outputs: Any, teacher: Any, temperature: float = 1.0, targets: Any = None
    ) -> torch.Tensor:
        self.heard.append(temperature)
        found = super().taught(outputs, teacher, temperature, targets)
        log_p, log_q = (
            torch.log_softmax(one.detach().double() / temperature, 1) for one in (teacher, outputs)
        )
        kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        torch.testing.assert_close(found.double(), temperature**2 * kl, rtol=1e-4, atol=1e-6)
        return found


@pytest.mark.parametrize(
    ("asked", "bits", "wanted"),
    [(None, 32, 4.0), (None, 8, 4.0), (None, 4, 1.0), (2.5, 32, 2.5), (3.0, 4, 3.0)],
)
def test_the_network_is_taught_at_the_temperature(
    asked: float | None, bits: int, wanted: float
) -> None:
    """Few levels cannot express the small differences that a high one asks for."""
    parts = pipeline(64)
    config = RefineConfig(images=64, block_steps=0, steps=2, batch_size=16, temperature=asked)
    layers = {layer.name: LayerPolicy(weight_bits=bits) for layer in parts.inventory.layers}
    kind = Listening()
    object.__setattr__(kind, "heard", [])
    task = replace(parts.task, divergence=kind)
    Refinement(parts.model, parts.stitch(Policy(layers)), parts.data, task, config).run()
    assert kind.heard == [wanted] * 2

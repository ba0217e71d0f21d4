"""What runs in training only stays as it is, and is found; what changes nothing there is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from masking import drawn
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.model.groups import channel_groups
from autocompress.model.inventory import take_inventory
from autocompress.model.slicing import remove
from autocompress.model.training_run import in_training

IMAGE = torch.randn(2, 3, 8, 8)


class Watched(nn.Module):
    """A head beside, as GoogLeNet and deep supervision have, in training only."""

    def __init__(self, apart: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.aux, self.head, self.apart = nn.Conv2d(16, 4, 1), nn.Linear(12, 4), apart

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.a(x))
        y = self.head(torch.relu(self.b(h)).mean((2, 3)))
        if not self.training:
            return y
        aux = self.aux(h).mean((2, 3))
        return (y, aux) if self.apart else y + aux


class Chain(nn.Module):
    """Layers with noise of training between them."""

    def __init__(self, noise: Any) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 4)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        x = self.noise(x) if isinstance(self.noise, nn.Module) else self.noise(x, self.training)
        return self.b(x.mean((2, 3)))


@pytest.mark.parametrize("apart", [True, False])
def test_what_a_head_of_training_reads_can_go(apart: bool) -> None:
    """The answer in use is the masked one's; the head stays as it is, and is named."""
    model = Watched(apart).eval()
    groups, plan = channel_groups(model, IMAGE)
    assert [g.name for g in groups] == ["a", "b"]
    removals = plan.removals(drawn(plan, 0.5))
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked.b.weight[:, removals["b", "in"]] = 0
        masked.head.weight[:, removals["head", "in"]] = 0
    remove(model, removals)
    torch.testing.assert_close(model(IMAGE), masked(IMAGE))
    assert model.aux.weight.shape == (4, 16, 1, 1)
    inventory = take_inventory(Watched(apart).eval(), IMAGE)
    alone = {left.group: left for left in inventory.left_alone}
    assert "runs in training only" in alone["aux"].reason
    assert alone["aux"].macs == 0
    assert "a" not in alone


class Sized(Watched):
    """What it does itself in training holds the number of channels."""

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.a(x))
        if self.training:
            h = h + torch.ones(16, 1, 1)
        y = self.head(torch.relu(self.b(h)).mean((2, 3)))
        return (y, self.aux(h).mean((2, 3))) if self.training else y


def test_what_the_rest_of_a_model_in_training_reads_stays() -> None:
    groups, plan = channel_groups(Sized().eval(), IMAGE)
    assert [g.name for g in groups] == ["b"]
    assert "cut, the model does not run in training" in plan.skipped["a"]


def test_how_training_differs() -> None:
    found = in_training(Watched().eval(), IMAGE)
    assert found is not None
    assert (found.layers, found.rebuilt, found.unsteady) == (("aux",), True, False)
    nested = nn.Sequential(Watched(), nn.Identity()).eval()
    nested[0].aux = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU())
    deep = in_training(nested, IMAGE)
    assert deep is not None
    assert deep.layers == ("0.aux", "0.aux.0", "0.aux.1")
    assert deep.heads == ("0.aux",)
    found = in_training(Watched(apart=False).eval(), IMAGE)
    assert found is not None
    assert not found.rebuilt


@pytest.mark.parametrize("noise", [nn.Dropout(0.5), nn.Sequential(nn.Dropout2d(0.5), nn.RReLU())])
def test_noise_of_layers_is_no_difference(noise: nn.Module) -> None:
    model = Chain(noise).eval()
    assert in_training(model, IMAGE) is None
    before = copy.deepcopy(model.state_dict())
    assert [g.name for g in channel_groups(model, IMAGE)[0]] == ["a"]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_noise_of_functions_keeps_nothing_from_being_cut() -> None:
    """Masks of another shape are drawn where channels went: their values are not compared."""
    model = Chain(lambda x, training: F.dropout(x, 0.5, training)).eval()
    found = in_training(model, IMAGE)
    assert found is not None
    assert found.unsteady
    assert [g.name for g in channel_groups(model, IMAGE)[0]] == ["a"]


def test_a_model_that_wants_targets_in_training_is_cut_as_it_is_used() -> None:
    class Wants(Watched):
        def forward(self, x: Tensor, targets: Any = None) -> Any:
            if self.training and targets is None:
                raise ValueError("targets, please")
            return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))

    assert in_training(Wants().eval(), IMAGE) is None
    assert [g.name for g in channel_groups(Wants().eval(), IMAGE)[0]] == ["a", "b"]


class Branching(nn.Module):
    """A head of training inside of a branch; it calls the branch's layer, or reads its weight."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.inner, self.outer = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.aux, self.reads = nn.Conv2d(8, 2, 1), reads

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = torch.relu(self.inner(x))
        x = x + self.outer(y)
        out = self.head(x.mean((2, 3)))
        if not self.training:
            return out
        return out, F.conv2d(y, self.inner.weight) if self.reads else self.aux(y)


@pytest.mark.parametrize("reads", [False, True])
def test_a_branch_that_training_reads_stays(reads: bool) -> None:
    torch.manual_seed(0)
    inventory = take_inventory(Branching(reads).eval(), IMAGE)
    assert bool(inventory.blocks) is not reads
    assert any("training" in reason for _, reason in inventory.blocks_left_alone) is reads

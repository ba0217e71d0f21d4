"""Learning rates against the closed form and torch's own scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.errors import InputError
from autocompress.policy.recovery import Schedule
from autocompress.recover.augment import MIXING, NAMES, Augment
from autocompress.recover.optimizer import make_optimizer

shapes = st.sampled_from(["cosine", "one_cycle"])
warmups = st.one_of(st.none(), st.floats(0, 0.9))


@given(shapes, warmups, st.integers(1, 5000))
def test_annealed_to_exactly_zero(anneal: str, warmup: float | None, total: int) -> None:
    schedule = Schedule(lr=0.3, anneal=anneal, warmup=warmup)
    assert schedule.lr_at(total, total) == 0.0
    rates = [schedule.lr_at(step, total) for step in range(total)]
    assert all(0 < rate <= 0.3 for rate in rates)


@given(shapes, warmups, st.integers(2, 400))
def test_rises_then_falls(anneal: str, warmup: float | None, total: int) -> None:
    schedule = Schedule(lr=1.0, anneal=anneal, warmup=warmup)
    rates = [schedule.lr_at(step, total) for step in range(total + 1)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_cosine_without_warmup_is_torchs_cosine() -> None:
    total, lr = 37, 0.4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total + 1)
    schedule = Schedule(lr=lr, warmup=0.0)
    for step in range(total):
        optimizer.step()
        torchs.step()
        assert schedule.lr_at(step, total) == pytest.approx(torchs.get_last_lr()[0], rel=1e-9)


def test_warmup_by_hand() -> None:
    schedule = Schedule(lr=1.0, warmup=0.1)
    assert [schedule.lr_at(s, 40) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule.lr_at(4, 40) == pytest.approx((1 + math.cos(math.pi / 37)) / 2)
    cycle = Schedule(lr=1.0, anneal="one_cycle", warmup=0.5)
    rise = 1 / 25 + 24 / 25 * (1 - math.cos(math.pi * 2 / 4)) / 2
    assert cycle.lr_at(1, 6) == pytest.approx(rise)


def test_only_weight_matrices_decay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    module[0].weight.requires_grad_(True)
    module[3].bias.requires_grad_(False)
    groups = make_optimizer(Schedule(weight_decay=0.1), module).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.1 for p in g["params"]}
    spared = {id(p) for g in groups if g["weight_decay"] == 0.0 for p in g["params"]}
    assert decayed == {id(module[0].weight), id(module[3].weight)}
    assert spared == {id(module[0].bias), id(module[1].weight), id(module[1].bias)}


def test_unknown_augmentation_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"`augment\.0`.*did you mean 'cutmix'"):
        Schedule.read({"augment": ["cutmx"]})
    with pytest.raises(InputError, match="did you mean 'cutmix'"):
        Augment(("cutmx",))


def test_every_augmentation_of_a_schedule_can_be_carried_out() -> None:
    schedule = Schedule(augment=NAMES)
    assert schedule.augment is not None
    augment = Augment(schedule.augment)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert augment(images, torch.Generator().manual_seed(0)).shape == images.shape
    assert set(augment.mixing) == set(MIXING)

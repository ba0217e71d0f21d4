"""The training loop against one written by hand, and its stops and resumes bit for bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError, TargetUnavailable, TrainingDiverged
from autocompress.policy.policy import Distill
from autocompress.policy.recovery import Schedule
from autocompress.recover.distill import Distillation
from autocompress.recover.engine import Trainer
from autocompress.recover.finetune import fine_tune
from autocompress.recover.score import score
from autocompress.task.data import Data, Split

Maker = Callable[..., Any]


def by_hand(module: nn.Module, data: Data, schedule: Schedule, steps: int) -> list[nn.Module]:
    """Full-batch SGD with Nesterov momentum, update by update; the module after each step."""
    module = copy.deepcopy(module).train()
    inputs, targets = data.train.inputs(), data.train.targets
    velocity = [torch.zeros_like(p) for p in module.parameters()]
    states = []
    for step in range(steps):
        loss = F.cross_entropy(module(inputs), targets, label_smoothing=schedule.label_smoothing)
        module.zero_grad()
        loss.backward()
        lr = schedule.lr_at(step, steps)
        with torch.no_grad():
            norm = sum(float(p.grad.square().sum()) for p in module.parameters()) ** 0.5
            clip = min(1.0, (schedule.grad_clip or float("inf")) / (norm + 1e-6))
            for p, v in zip(module.parameters(), velocity, strict=True):
                decay = schedule.weight_decay if p.dim() > 1 else 0.0
                gradient = clip * p.grad + decay * p
                v.mul_(schedule.momentum).add_(gradient)
                p -= lr * (gradient + schedule.momentum * v)
        states.append(copy.deepcopy(module))
    return states


def agree(found: nn.Module, expected: nn.Module, atol: float = 1e-5) -> bool:
    other = expected.state_dict()
    return all(torch.allclose(t, other[n], atol=atol) for n, t in found.state_dict().items())


def identical(found: nn.Module, expected: nn.Module) -> bool:
    other = expected.state_dict()
    return all(torch.equal(t, other[n]) for n, t in found.state_dict().items())


@pytest.mark.parametrize("clip", [None, 0.05])
def test_full_batch_training_is_the_hand_written_loop(
    images: Data, make_net: Maker, schedule: Schedule, clip: float | None
) -> None:
    changes = {"batch_size": 96, "epochs": 6, "grad_clip": clip, "label_smoothing": 0.1}
    schedule = schedule.model_copy(update=changes)
    tuned = fine_tune(make_net(), images, schedule)
    assert tuned.steps == 6
    assert agree(tuned.module, by_hand(make_net(), images, schedule, 6)[-1])
    assert tuned.history[-1].lr == schedule.lr_at(5, 6)


def test_moving_average_follows_its_recursion(
    images: Data, make_net: Maker, schedule: Schedule
) -> None:
    schedule = schedule.model_copy(update={"batch_size": 96, "epochs": 5, "ema": 0.7})
    states = by_hand(make_net(), images, schedule, 5)
    average = dict(states[0].named_parameters())
    for state in states[1:]:
        now = dict(state.named_parameters())
        average = {n: 0.7 * average[n] + 0.3 * now[n] for n in average}
    found = fine_tune(make_net(), images, schedule).module
    for name, parameter in found.named_parameters():
        assert torch.allclose(parameter, average[name], atol=1e-5)
    assert not agree(found, states[-1], atol=1e-4)


def test_learns_and_tells(images: Data, make_net: Maker, schedule: Schedule) -> None:
    told: list[tuple[str, float]] = []
    before = score(make_net(), images.val)
    schedule = schedule.model_copy(update={"epochs": 6, "lr": 0.2})
    tuned = fine_tune(
        make_net(), images, schedule, progress=lambda text, done: told.append((text, done))
    )
    assert score(tuned.module, images.val) > max(0.9, before)
    assert [r.epoch for r in tuned.history] == [1, 2, 3, 4, 5, 6]
    assert tuned.history[-1].loss < tuned.history[0].loss
    assert told[-1][1] == 1.0
    assert "epoch 6.0 of 6" in told[-1][0]
    assert not tuned.module.training


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 3), (1.5, 9), (0.01, 1), (0, 0)])
def test_fractions_of_epochs(
    images: Data, make_net: Maker, schedule: Schedule, epochs: float, steps: int
) -> None:
    tuned = fine_tune(make_net(), images, schedule.model_copy(update={"epochs": epochs}))
    assert tuned.steps == steps
    assert identical(tuned.module, make_net()) == (steps == 0)


def test_the_given_model_and_the_random_state_are_left_alone(
    images: Data, make_net: Maker, schedule: Schedule
) -> None:
    given, teacher = make_net(0, dropout=0.3), make_net(1, dropout=0.3).train()
    before, teacher_before = copy.deepcopy(given), copy.deepcopy(teacher)
    state = torch.get_rng_state()
    spoken = Distillation([teacher], Distill(features="hint"))
    tuned = fine_tune(given, images, schedule, distillation=spoken)
    assert torch.equal(torch.get_rng_state(), state)
    for module, copied in ((given, before), (teacher, teacher_before)):
        assert identical(module, copied)
        assert module.training == copied.training
        assert all(p.grad is None and p.requires_grad for p in module.parameters())
    for module in (given, teacher, tuned.module):
        assert not any(m._forward_hooks for m in module.modules())
    assert not identical(tuned.module, given)


def test_the_seed_decides(images: Data, make_net: Maker, schedule: Schedule) -> None:
    schedule = schedule.model_copy(update={"augment": ("crop", "flip", "mixup")})
    first, same, other = (
        fine_tune(make_net(dropout=0.4), images, schedule, seed=s).module for s in (3, 3, 4)
    )
    assert identical(first, same)
    assert not identical(first, other)


class Stops:
    """Cross-entropy that breaks off once, at a given call, as a killed process does."""

    def __init__(self, at: int | None) -> None:
        self.left = at

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("stop", [2, 6, 9])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_training_is_bit_identical(
    images: Data,
    make_net: Maker,
    schedule: Schedule,
    tmp_path: Path,
    stop: int,
    optimizer: str,
) -> None:
    """With everything that has a state: momentum, average, dropout, projections, augmentation."""
    changes = {"epochs": 3, "augment": ("crop", "flip"), "ema": 0.8, "optimizer": optimizer}
    schedule = schedule.model_copy(update=changes)
    path = tmp_path / "deep" / "tune.ckpt"

    def train(at: int | None, checkpoint: Path | None) -> Any:
        images.loss = Stops(at)
        return fine_tune(
            make_net(dropout=0.3),
            images,
            schedule,
            distillation=Distillation([make_net(1, width=6)], Distill(features="hint")),
            seed=7,
            checkpoint_path=checkpoint,
            checkpoint_every=0.0,
        )

    whole = train(None, None)
    with pytest.raises(KeyboardInterrupt):
        train(stop, path)
    assert path.is_file()
    resumed = train(18 - stop, path)  # breaks off if a finished step were done again
    assert identical(resumed.module, whole.module)
    assert [(r.epoch, r.loss, r.lr) for r in resumed.history] == [
        (r.epoch, r.loss, r.lr) for r in whole.history
    ]
    assert not path.exists()


def test_an_epoch_keeps_its_record_when_its_validation_is_interrupted(
    images: Data, make_net: Maker, schedule: Schedule, tmp_path: Path
) -> None:
    def interrupted(module: nn.Module) -> float:
        raise KeyboardInterrupt

    path = tmp_path / "tune.ckpt"
    with pytest.raises(KeyboardInterrupt):
        Trainer(make_net(), images, schedule).run(
            checkpoint=path, checkpoint_every=0.0, validate=interrupted
        )
    history = Trainer(make_net(), images, schedule).run(
        checkpoint=path, validate=lambda module: score(module, images.val)
    )
    assert [r.epoch for r in history] == [1, 2]
    assert all(r.score is not None for r in history)


def test_a_foreign_or_broken_checkpoint_is_not_taken_up(
    images: Data,
    make_net: Maker,
    schedule: Schedule,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "tune.ckpt"
    Trainer(make_net(), images, schedule).run(checkpoint=path)
    other = schedule.model_copy(update={"lr": 0.01})
    tuned = fine_tune(make_net(), images, other, checkpoint_path=path)
    assert "of another training" in caplog.text
    assert identical(tuned.module, fine_tune(make_net(), images, other).module)
    Trainer(make_net(), images, schedule).run(checkpoint=path)
    whole = path.read_bytes()
    for broken in (b"torn", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        caplog.clear()
        fine_tune(make_net(), images, other, checkpoint_path=path)
        assert "not readable" in caplog.text


def test_divergence_is_said_and_named(images: Data, make_net: Maker, schedule: Schedule) -> None:
    calls = 0

    def breaks(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, targets) * (float("nan") if calls == 4 else 1.0)

    images.loss = breaks
    with pytest.raises(TrainingDiverged, match="nan in step 4 of 12"):
        fine_tune(make_net(), images, schedule)
    assert calls == 4  # aborted at once
    images.loss = None
    wild = schedule.model_copy(update={"lr": 1e12, "grad_clip": None})
    with pytest.raises(TrainingDiverged, match="Lower `lr`"):
        fine_tune(make_net(), images, wild)


def test_weights_that_break_in_the_last_step_are_found(
    images: Data, make_net: Maker, schedule: Schedule
) -> None:
    # the loss is finite, but the root's slope at zero is not
    images.loss = lambda outputs, targets: (outputs * 0).abs().sqrt().sum()
    with pytest.raises(TrainingDiverged, match="weights of"):
        fine_tune(make_net(), images, schedule.model_copy(update={"epochs": 0.01}))


def test_users_loader_loss_and_metric(schedule: Schedule) -> None:
    """Least squares through a DataLoader reaches the closed-form solution."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3 + 0.1 * torch.randn(64, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=10)
    data = Data.wrap(
        {
            "train": loader,
            "val": loader,
            "test": loader,
            "loss": F.mse_loss,
            "metric": lambda outputs, targets: -float(F.mse_loss(outputs, targets)),
        }
    )
    changes = {"epochs": 150, "batch_size": 64, "lr": 0.1, "weight_decay": 0.0}
    tuned = fine_tune(nn.Linear(3, 1), data, schedule.model_copy(update=changes))
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(64, 1)], 1), y).solution
    assert torch.allclose(tuned.module.weight.flatten(), solution[:3, 0], atol=1e-4)
    assert torch.allclose(tuned.module.bias, solution[3], atol=1e-4)
    residual = torch.cat([x, torch.ones(64, 1)], 1) @ solution - y
    expected = pytest.approx(-float(residual.square().mean()), rel=1e-3)
    assert score(tuned.module, data.val, data.metric) == expected


def test_a_class_per_position(schedule: Schedule) -> None:
    """Cross-entropy of sequences counts every position once."""
    torch.manual_seed(0)
    split = Split(torch.randn(12, 5, 4), torch.randint(3, (12, 5)))
    data = Data(split, split, split, classes=3)
    module = nn.Linear(4, 3)
    history = Trainer(
        copy.deepcopy(module), data, schedule.model_copy(update={"batch_size": 12, "epochs": 1})
    ).run()
    outputs = module(split.inputs())
    expected = F.cross_entropy(outputs.reshape(60, 3), split.targets.reshape(60))
    assert history[0].loss == pytest.approx(expected.item(), rel=1e-5)


def test_named_augmentations_refuse_several_inputs(schedule: Schedule) -> None:
    split = Split((torch.zeros(8, 2), torch.zeros(8, 2)), torch.zeros(8, dtype=torch.long))
    data = Data(split, split, split, classes=2)
    with pytest.raises(InputError, match="several stored inputs"):
        Trainer(nn.Linear(2, 2), data, schedule.model_copy(update={"augment": ("flip",)}))


def test_unknown_devices_are_said() -> None:
    from autocompress.recover.device import Place

    with pytest.raises(TargetUnavailable, match="not a torch device"):
        Place.of(Schedule(device="gpuu"))
    if not torch.cuda.is_available():
        with pytest.raises(TargetUnavailable, match="no CUDA device"):
            Place.of(Schedule(device="cuda"))


def test_bf16_trains_nearly_as_float(images: Data, make_net: Maker, schedule: Schedule) -> None:
    full = fine_tune(make_net(), images, schedule)
    half = fine_tune(make_net(), images, schedule.model_copy(update={"precision": "bf16"}))
    assert not identical(full.module, half.module)
    assert agree(half.module, full.module, atol=0.05)
    assert all(p.dtype == torch.float32 for p in half.module.parameters())


def test_no_warning_without_a_reason(
    images: Data, make_net: Maker, schedule: Schedule, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine_tune(make_net(), images, schedule, distillation=Distillation([make_net(1)]))
    assert not caplog.messages

"""Every term of the distillation loss against one written out by hand in numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.policy.policy import Distill
from autocompress.policy.recovery import DistillationConfig, Schedule
from autocompress.recover.device import Place
from autocompress.recover.distill import (
    Distillation,
    Teaching,
    safe_temperature,
    soft_loss,
)
from autocompress.recover.finetune import fine_tune
from autocompress.task.data import Data, Split

CPU = Place(torch.device("cpu"), bf16=False)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def kl_by_hand(model: Tensor, teacher: Tensor, tau: float) -> float:
    """tau^2 * KL(teacher || model), sum over classes, mean over samples, in float64."""
    p = softmax(teacher.detach().double().numpy() / tau)
    q = softmax(model.detach().double().numpy() / tau)
    total = 0.0
    for n in range(p.shape[0]):
        for c in range(p.shape[1]):
            total += p[n, c] * (np.log(p[n, c]) - np.log(q[n, c]))
    return tau**2 * total / p.shape[0]


def ce_by_hand(outputs: Tensor, targets: Tensor) -> float:
    q = softmax(outputs.detach().double().numpy())
    return float(-np.log(q[np.arange(len(q)), targets.numpy()]).mean())


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_soft_loss_and_its_gradient(tau: float) -> None:
    torch.manual_seed(0)
    model, teacher = torch.randn(7, 10, requires_grad=True), 3 * torch.randn(7, 10)
    loss = soft_loss(model, teacher, tau)
    assert loss.item() == pytest.approx(kl_by_hand(model, teacher, tau), rel=1e-5)
    loss.backward()
    # d/dz of tau^2 KL is tau (q - p) / N
    p, q = softmax(teacher.numpy() / tau), softmax(model.detach().numpy() / tau)
    assert np.allclose(model.grad.numpy(), tau * (q - p) / 7, atol=1e-6)


def test_soft_loss_of_sequences_averages_over_positions() -> None:
    torch.manual_seed(1)
    model, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    by_hand = kl_by_hand(model.reshape(6, 5), teacher.reshape(6, 5), 2.0)
    assert float(soft_loss(model, teacher, 2.0)) == pytest.approx(by_hand, rel=1e-5)


def test_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match="same shape"):
        soft_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


def one_loss(
    model: nn.Module, distillation: Distillation, data: Data, **kwargs: Any
) -> tuple[Teaching, float, Tensor, Tensor]:
    """The loss of the first eight samples, in eval mode: teaching, loss, inputs, outputs."""
    teaching = distillation.attach(model, data, CPU, **kwargs)
    stored, targets = data.train.take(slice(0, 8))
    inputs = data.train.prepare(stored)
    outputs = model(inputs)
    loss = teaching.loss(F.cross_entropy(outputs, targets), outputs, inputs, stored)
    return teaching, loss.item(), inputs, outputs


def test_labels_and_logits(images: Data, make_net: Callable[..., Any]) -> None:
    model, teacher = make_net(0), make_net(1, width=8)
    config = Distill(temperature=3.0, weight=0.7)
    _, loss, inputs, outputs = one_loss(model, Distillation([teacher], config), images)
    by_hand = 0.3 * ce_by_hand(outputs, images.train.targets[:8])
    by_hand += 0.7 * kl_by_hand(outputs, teacher(inputs), 3.0)
    assert loss == pytest.approx(by_hand, rel=1e-5)


def test_teachers_weighted_by_hand(images: Data, make_net: Callable[..., Any]) -> None:
    model, teachers = make_net(0), [make_net(1), make_net(2, width=6)]
    config = Distill(temperature=2.0, weight=0.5)
    spoken = Distillation(teachers, config, weights=[3.0, 1.0])
    _, loss, inputs, outputs = one_loss(model, spoken, images)
    first, second = (kl_by_hand(outputs, t(inputs), 2.0) for t in teachers)
    by_hand = 0.5 * ce_by_hand(outputs, images.train.targets[:8])
    by_hand += 0.5 * (0.75 * first + 0.25 * second)
    assert loss == pytest.approx(by_hand, rel=1e-5)


def test_hint_through_learned_projections(images: Data, make_net: Callable[..., Any]) -> None:
    model, teacher = make_net(0), make_net(1, width=7)
    config = Distill(temperature=1.0, weight=0.5, features="hint", feature_weight=2.5)
    teaching, loss, inputs, outputs = one_loss(model, Distillation([teacher], config), images)
    by_hand = 0.5 * ce_by_hand(outputs, images.train.targets[:8])
    by_hand += 0.5 * kl_by_hand(outputs, teacher(inputs), 1.0)
    projections = [m for m in teaching.projections.modules() if isinstance(m, nn.Conv2d)]
    for ours, theirs, projection in zip(
        model.maps(inputs), teacher.maps(inputs), projections, strict=True
    ):
        regressor = projection.weight.detach().numpy()[:, :, 0, 0]
        moved = np.einsum("oc,nchw->nohw", regressor, ours.detach().numpy())
        by_hand += 2.5 * ((moved - theirs.detach().numpy()) ** 2).mean() / 2
    assert loss == pytest.approx(by_hand, rel=1e-4)


def test_attention_transfer(images: Data, make_net: Callable[..., Any]) -> None:
    model, teacher = make_net(0), make_net(1, width=7)
    config = Distill(temperature=1.0, weight=0.0, features="attention", feature_weight=10.0)
    _, loss, inputs, outputs = one_loss(model, Distillation([teacher], config), images)
    by_hand = ce_by_hand(outputs, images.train.targets[:8])
    for ours, theirs in zip(model.maps(inputs), teacher.maps(inputs), strict=True):
        maps = []
        for features in (ours.detach().numpy(), theirs.detach().numpy()):
            energy = (features**2).mean(1).reshape(8, -1)
            maps.append(energy / np.linalg.norm(energy, axis=1, keepdims=True))
        by_hand += 10.0 * ((maps[0] - maps[1]) ** 2).sum(1).mean() / 2
    assert loss == pytest.approx(by_hand, rel=1e-4)


def test_features_without_a_common_resolution_are_refused(images: Data) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(InputError, match="feature maps of the same size"):
        Distillation([flat], Distill(features="hint")).attach(copy.deepcopy(flat), images, CPU)


def test_teachers_count_by_accuracy_above_chance() -> None:
    """One teacher is always right, one half of the time, one is at chance (1 of 4)."""
    split = Split(torch.eye(4), torch.arange(4))
    data = Data(split, split, split, classes=4)

    def knows(*answers: int) -> nn.Module:
        layer = nn.Linear(4, 4, bias=False)
        layer.weight = nn.Parameter(torch.eye(4)[list(answers)].T.contiguous())
        return layer

    teachers = [knows(0, 1, 2, 3), knows(0, 1, 3, 2), knows(0, 2, 3, 1)]
    teaching = Distillation(teachers, weights="accuracy").attach(nn.Linear(4, 4), data, CPU)
    assert teaching.weights == pytest.approx([0.75, 0.25, 0.0])
    nobody = Distillation([knows(1, 0, 3, 2), knows(0, 2, 3, 1)], weights="accuracy")
    assert nobody.attach(nn.Linear(4, 4), data, CPU).weights == [0.5, 0.5]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.5], [0.0, 0.0], "acuracy"])
def test_wrong_teacher_weights_are_refused(
    weights: Any, images: Data, make_net: Callable[..., Any]
) -> None:
    spoken = Distillation([make_net(1), make_net(2)], weights=weights)
    with pytest.raises(InputError):
        spoken.attach(make_net(0), images, CPU)


class Counting(nn.Module):
    """A teacher who counts, over all of its copies, how often it is asked."""

    asked = 0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        Counting.asked += 1
        return self.inner(x)


def test_cached_outputs_equal_fresh_ones(
    images: Data, make_net: Callable[..., Any], schedule: Schedule
) -> None:
    schedule = schedule.model_copy(update={"epochs": 4, "augment": ("crop", "flip", "cutmix")})
    teacher = Counting(make_net(1, width=8)).eval()

    def train(teacher: nn.Module, seed: int, model: int = 0) -> dict[str, Tensor]:
        spoken = Distillation([teacher], Distill(), cached_draws=2)
        tuned = fine_tune(make_net(model), images, schedule, distillation=spoken, seed=seed)
        return tuned.module.state_dict()

    Counting.asked = 0
    train(teacher, seed=0, model=3)
    assert Counting.asked == 2 * 6  # two draws of six batches serve four epochs
    from_cache = train(teacher, seed=0)
    assert Counting.asked == 2 * 6  # another model asks nothing more
    other_seed = train(teacher, seed=1)
    assert Counting.asked == 4 * 6  # other batches are no batches of the cache
    for found, seed in ((from_cache, 0), (other_seed, 1)):
        fresh = train(copy.deepcopy(teacher), seed)
        assert all(torch.equal(found[n], fresh[n]) for n in fresh)


def test_fixed_draws_repeat_and_free_ones_do_not(
    images: Data, make_net: Callable[..., Any], schedule: Schedule
) -> None:
    def batches(cached: int) -> list[bytes]:
        seen: list[bytes] = []

        class Spy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = make_net(0)

            def forward(self, x: Tensor) -> Tensor:
                if self.training and torch.is_grad_enabled():
                    seen.append(x.contiguous().numpy().tobytes())
                return self.inner(x)

        spoken = Distillation([make_net(1)], cached_draws=cached)
        fine_tune(
            Spy(),
            images,
            schedule.model_copy(update={"augment": ("crop", "mixup")}),
            distillation=spoken,
        )
        return seen

    fixed, free = batches(1), batches(0)
    assert len(fixed) == len(free) == 12
    assert sorted(fixed[:6]) == sorted(fixed[6:])
    assert fixed[:6] != fixed[6:]  # the same batches, in another order
    assert len(set(free)) == 12


class Reads(nn.Module):
    """Takes inputs of one shape only, and remembers none."""

    def __init__(self, shape: tuple[int, ...], classes: int = 3) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(int(np.prod(shape)), classes)

    def forward(self, x: Tensor) -> Tensor:
        assert tuple(x.shape[1:]) == self.shape
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("given", ["by the data", "by hand"])
def test_each_network_receives_its_own_part_of_a_sample(given: str) -> None:
    torch.manual_seed(0)
    rows, pictures = torch.randn(24, 4, 2), torch.randn(24, 1, 8, 8)
    split = Split((rows, pictures), torch.arange(24) % 3, lambda stored: stored[0])
    view = lambda stored: 2 * stored[1]  # noqa: E731 - as a user would write it
    extra = {"teacher_view": view} if given == "by the data" else {}
    data = Data(split, split, split, classes=3, extra=extra)
    model, teacher = Reads((4, 2)), Reads((1, 8, 8))
    config = Distill(temperature=1.0, weight=1.0)
    spoken = Distillation([teacher], config, view=None if extra else view)
    _, loss, _, outputs = one_loss(model, spoken, data)
    assert loss == pytest.approx(kl_by_hand(outputs, teacher(2 * pictures[:8]), 1.0), rel=1e-5)
    schedule = Schedule(epochs=1, batch_size=8, precision="fp32", device="cpu")
    fine_tune(model, data, schedule, distillation=spoken)


def test_default_temperature_is_safe_at_low_bits(caplog: pytest.LogCaptureFixture) -> None:
    assert [safe_temperature(None, bits) for bits in (32, 8, 4, 3, 2)] == [2, 2, 1, 1, 1]
    assert safe_temperature(5.0, 8) == 5.0
    assert safe_temperature(1.0, 3) == 1.0
    assert not caplog.messages
    assert safe_temperature(5.0, 4) == 5.0
    assert "4-bit weights can cost many points" in caplog.text


def test_fine_tune_reads_the_bits_off_the_policy(
    images: Data,
    make_net: Callable[..., Any],
    schedule: Schedule,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from autocompress.policy.policy import LayerPolicy, Policy
    from autocompress.policy.settings import CompressionSettings
    from autocompress.techniques.compressed import Compressed, Precision

    hot = Distillation([make_net(1)], Distill(temperature=4.0))
    for bits, warned in ((8, False), (4, True)):
        policy = Policy({"conv2": LayerPolicy(weight_bits=bits)}, Distill())
        compressed = Compressed(
            make_net(0), policy, CompressionSettings(), {"conv2": Precision(bits)}
        )
        caplog.clear()
        fine_tune(compressed, images, schedule, distillation=hot, qat=True)
        assert ("can cost many points" in caplog.text) == warned


def test_study_section_and_policy_together() -> None:
    teacher = nn.Linear(2, 2)
    asked = Distill(temperature=3.0, weight=0.9)
    plain = Distillation.of(DistillationConfig(), [teacher], asked)
    assert plain.config == asked
    section = DistillationConfig(weight=0.2, features="attention", teacher_weights=(2.0,))
    built = Distillation.of(section, [teacher], asked)
    assert built.config == Distill(temperature=3.0, weight=0.2, features="attention")
    assert built.weights == (2.0,)
    with pytest.raises(InputError, match="at least one teacher"):
        Distillation([])

"""Repair without labels of networks of any kind: it works, or it is left out and says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import data, example, make
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build import refine
from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.build.refine import Refinement
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.recover.device import Place
from autocompress.results.trial import Phase
from autocompress.task.data import Data, Split
from autocompress.task.divergence import SoftmaxKL
from autocompress.task.memory import Memory
from autocompress.task.ready import ready
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate

STEPS = RefineConfig(images=256, block_steps=20, steps=60, batch_size=32, lr=3e-3)


class Layers(nn.Module):
    """Four linear layers; subclasses say what lies between the second and the third."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 16)
        self.three, self.four = nn.Linear(16, 16), nn.Linear(16, 5)

    def between(self, x: Tensor) -> Tensor:
        return x.relu()

    def first(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.four(self.three(self.between(self.first(x))).relu())


class Codes(Layers):
    """What flows alone are places in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16)

    def between(self, x: Tensor) -> Tensor:
        return self.table(x.argmax(-1))


class Spectrum(Layers):
    """What flows alone are complex numbers."""

    def between(self, x: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(x) * 1.5).real


class Double(Layers):
    """What flows alone has 64 bits."""

    def between(self, x: Tensor) -> Tensor:
        return x.double().cumsum(-1).div(4).float()


class Detached(Layers):
    """No gradient comes back to the first half."""

    def between(self, x: Tensor) -> Tensor:
        return x.relu().detach()


class Shuffled(Layers):
    """One of its parameters is a list of places."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randperm(16), requires_grad=False)

    def between(self, x: Tensor) -> Tensor:
        return x.relu()[:, self.places]


class Scalar(Layers):
    """One number alone flows on for a while."""

    def between(self, x: Tensor) -> Tensor:
        return (x.mean().exp() + self.two.bias).expand(len(x), -1)


class Sometimes(Layers):
    """No answer to some inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * (x[:, :1] + 1.2).log()


class Experts(Layers):
    """Each sample is sent to one of four branches, which may get a single one of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16))
            for _ in range(4)
        )

    def between(self, x: Tensor) -> Tensor:
        chosen, out = x[:, :4].argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return x + out


def vectors(count: int = 256) -> Data:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    y = torch.arange(count) % 5
    other = torch.randn(128, 8, generator=torch.Generator().manual_seed(2))
    test = Split(other, torch.arange(128) % 5)
    return Data(Split(x, y), test, test, classes=5)


def shaken(model: nn.Module) -> nn.Module:
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("two", "three"):
            found.get_submodule(name).weight.mul_(0.6)
    return found


def refined(
    model: nn.Module, start: nn.Module, own: Data, config: RefineConfig = STEPS, **more: Any
) -> Compressed:
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)]
    given = Compressed(
        start,
        Policy(),
        CompressionSettings(finish="refine", refine=config),
        parts={name: (name,) for name in names},
    )
    place = more.pop("place", Place.of(Schedule(device="cpu", precision="fp32")))
    return Refinement(model, given, own, ready("classification"), config, place=place, **more).run()


@torch.no_grad()
def distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    a, b = one(x), other(x)
    known = a.isfinite().all(1)
    return float(SoftmaxKL()(a[known], b[known]).mean())


def lively(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2)
    return model


@pytest.mark.parametrize(
    "kind", [Codes, Spectrum, Double, Detached, Shuffled, Scalar, Sometimes, Experts]
)
def test_whatever_flows_between_layers_it_comes_nearer(kind: Callable[[], nn.Module]) -> None:
    model, own = lively(kind), vectors()
    start = shaken(model)
    found = refined(model, start, own)
    unseen = own.test.inputs()
    assert distance(model, found.module, unseen) < 0.8 * distance(model, start, unseen)
    assert not any(part.training for part in found.module.modules())


class Closed(Layers):
    """Its forward keeps no gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Inference(Layers):
    """Its forward makes tensors that can have no gradients."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", [Closed, Inference])
def test_a_forward_without_gradients_is_said(kind: Callable[[], nn.Module]) -> None:
    model, own = lively(kind), vectors()
    start = shaken(model)
    found = refined(model, start, own)
    assert any("no gradient" in note for note in found.notes)
    unseen = own.test.inputs()
    assert distance(model, found.module, unseen) <= 1.05 * distance(model, start, unseen)


class Nowhere(Layers):
    """No number at all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


def test_a_model_without_answers_is_left_alone_and_said() -> None:
    model, own = lively(Nowhere), vectors()
    start = shaken(model)
    found = refined(model, start, own)
    assert found.module is start
    assert any(note.startswith("Not refined: ") for note in found.notes)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_a_handful_of_inputs_is_no_reason_to_fail(count: int) -> None:
    model, own = lively(Layers), vectors(count)
    start = shaken(model)
    found = refined(model, start, own)
    for a, b in zip(start.parameters(), found.module.parameters(), strict=True):
        assert a.shape == b.shape
    assert count > 3 or any("too few" in note for note in found.notes)


def test_what_comes_no_nearer_is_left_out_and_said() -> None:
    model, own = lively(Layers), vectors()
    start = shaken(model)
    config = STEPS.model_copy(update={"lr": 1000.0, "network_lr": 1000.0})
    found = refined(model, start, own, config)
    for a, b in zip(start.parameters(), found.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any("no nearer" in note for note in found.notes)
    nearer = refined(model, start, own)
    assert not any("no nearer" in note for note in nearer.notes)


class Normed(Layers):
    """With batch norms of some momentum."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16, momentum=momentum)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


def test_statistics_follow_whatever_the_momentum_was_in_training() -> None:
    """Of a norm that was trained with 0.001, or that averages over all that it has ever seen."""
    own, states = vectors(), []
    config = STEPS.model_copy(update={"block_steps": 0})
    for momentum in (0.1, 0.001, None, 0.0):
        model = lively(lambda: Normed(momentum))  # noqa: B023 - called at once
        model.norm.num_batches_tracked.fill_(100_000)
        found = refined(model, shaken(model), own, config)
        assert found.module.norm.momentum == momentum
        states.append(found.module.state_dict())
    for name, tensor in states[0].items():
        assert all(torch.equal(tensor, state[name]) for state in states[1:]), name
    assert not torch.equal(states[0]["norm.running_mean"], torch.zeros(16))


def test_without_steps_for_blocks_none_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "run_segment", None)  # a call would raise
    monkeypatch.setattr(refine, "Walk", None)
    model, own = lively(Layers), vectors()
    start = shaken(model)
    found = refined(model, start, own, STEPS.model_copy(update={"block_steps": 0}))
    unseen = own.test.inputs()
    assert distance(model, found.module, unseen) < 0.8 * distance(model, start, unseen)


def test_a_small_memory_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to what is held back are for three networks at once; values lie there twice."""
    model, own = lively(Layers), replace(vectors(), memory=Memory(900))
    judged: list[int] = []
    plain = refine.HeldOutDivergence

    def spied(original: nn.Module, inputs: Split, *more: Any) -> Any:
        judged.append(len(inputs))
        return plain(original, inputs, *more)

    monkeypatch.setattr(refine, "HeldOutDivergence", spied)
    start = shaken(model)
    found = refined(model, start, own)
    assert judged == [900 // (3 * 4 * 5)]
    unseen = own.test.inputs()
    assert distance(model, found.module, unseen) < 0.8 * distance(model, start, unseen)


def test_it_runs_where_and_how_the_schedule_says(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Place] = []

    def run(self: Refinement) -> Compressed:
        places.append(self.place)
        return self.compressed

    monkeypatch.setattr(Refinement, "run", run)
    model, own = make("residual"), data("residual", 64)
    settings = CompressionSettings(finish="refine", refine=STEPS)
    inventory = take_inventory(model, example("residual"))
    bank = LayerBank.build(model, inventory, own.train, settings)
    policy = Policy({"conv1": LayerPolicy(prune_ratio=0.5)})
    for precision in ("fp32", "bf16"):
        schedule = Schedule.model_validate({"device": "cpu", "precision": precision})
        parts = Pipeline(model, own, inventory, bank, settings, schedule)
        parts.build(policy, Phase("recover", 0.0, 1))
    assert [(place.device.type, place.bf16) for place in places] == [("cpu", False), ("cpu", True)]


@pytest.mark.parametrize("count", [1, 7, 33])
def test_the_last_batch_of_a_few_is_no_trouble_for_batch_norms(count: int) -> None:
    model, own = lively(lambda: Normed(0.1)), vectors(256)
    start = shaken(model)
    config = STEPS.model_copy(update={"batch_size": count, "network_images": 100})
    found = refined(model, start, own, config)
    assert all(torch.isfinite(p).all() for p in found.module.parameters())
    assert F.softmax(found.module(own.test.inputs()), -1).isfinite().all()


@pytest.mark.parametrize("images", [32, 200])
def test_bits_are_never_worse_once_calibrated_as_they_will_be(images: int) -> None:
    """The judge calibrates on what the pipeline does, not on the blocks' own inputs."""
    model, own = make("plain"), data("plain", 200)
    config = STEPS.model_copy(update={"images": images, "block_steps": 2, "steps": 2})
    settings = CompressionSettings(finish="refine", refine=config, calibration_images=64)
    inventory = take_inventory(model, example("plain"))
    bank = LayerBank.build(model, inventory, own.train, settings)
    parts = Pipeline(model, own, inventory, bank, settings, Schedule(device="cpu"))
    bits = LayerPolicy(weight_bits=3, activation_bits=8)
    policy = Policy({layer.name: bits for layer in inventory.layers})
    solved = replace(parts, settings=settings.model_copy(update={"finish": "sequential"}))
    phase = Phase("recover", 0.0, 1)
    before, after = solved.build(policy, phase), parts.build(policy, phase)
    assert not any(note.startswith("Refined as a whole") for note in after.notes)
    held = own.train.sample(images).inputs(max(1, images // 8))
    far, near = (distance(model, simulate(made), held) for made in (before, after))
    assert near <= far * (1 + 1e-5)

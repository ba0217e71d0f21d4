"""Scales moved between layers: the float network stays, rounding loses less, or nothing is done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.calibrate import calibrate
from autocompress.build.equalize import equalize
from autocompress.exporters.write import export
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Compressed, Precision


class RootMeanSquare(nn.Module):
    """A norm as language models write it: no module of torch."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    """A pre-norm block with a gated MLP, and a linear layer on top."""

    def __init__(self, norm: Callable[[int], nn.Module], gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.last = norm(16), norm(16)
        self.one, self.gate, self.two = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.curve, self.head = gate, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.two(self.one(y) * self.curve(self.gate(y)))
        return self.head(self.last(x))


class Stream(nn.Module):
    """Two convolutions that are added up make the channels of one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.branch(x))
        x = F.max_pool2d(F.relu(self.depthwise(x)), 4)
        return self.head(x.flatten(1))


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, what: nn.Module) -> None:
        super().__init__()
        self.one, self.what, self.two = nn.Conv2d(3, 12, 3, padding=1), what, nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.what(self.one(x))).mean((2, 3))


class Silenced(nn.Module):
    """Convolutions are added up, and hardly anything of some channels is left above zero."""

    def __init__(self, parts: int, pooled: bool) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 12, 3, padding=1) for _ in range(parts))
        self.pooled = pooled
        self.head = nn.Linear(12 if pooled else 12 * 64, 5)
        with torch.no_grad():
            for layer in self.convolutions:
                assert layer.bias is not None
                layer.bias[:2] = torch.tensor([20.0, -3.0]) / parts

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(sum(layer(x) for layer in self.convolutions))
        return self.head(x.mean((2, 3)) if self.pooled else x.flatten(1))


def _outlier(model: nn.Module, maker: str, reader: str, factor: float = 300.0) -> None:
    """Make one channel so many times larger, and what reads it as much smaller."""
    with torch.no_grad():
        made, read = model.get_submodule(maker), model.get_submodule(reader)
        for parameter in made.parameters(recurse=False):
            parameter[1] *= factor
        weight = read.get_parameter("weight")
        if weight.shape[1] == 1:  # depthwise
            weight[1] /= factor
        else:
            wide = weight.shape[1] // len(made.get_parameter("weight"))
            weight[:, wide : 2 * wide] /= factor


def _images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _tokens(count: int = 64) -> Tensor:
    return torch.randn(count, 6, 16, generator=torch.Generator().manual_seed(1))


def _compressed(model: nn.Module, bits: Precision | None = None, **settings: object) -> Compressed:
    chosen = bits or Precision(8, 8, reduced=True)  # no sum overflows on any processor
    layers = {n: chosen for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    given = CompressionSettings.model_validate({"calibration_images": 64, **settings})
    return Compressed(model.eval(), Policy(), given, precisions=layers)


def _of_file(made: Compressed, inputs: Tensor, folder: Path) -> Tensor:
    path = export(made, folder / "m.onnx", inputs[:2]).path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    return torch.from_numpy(np.asarray(found))


_MOVED = {
    "convolutions": (lambda: Between(nn.ReLU()), "one", "two", _images),
    "pooled": (
        lambda: Between(nn.Sequential(nn.MaxPool2d(2), nn.LeakyReLU())),
        "one",
        "two",
        _images,
    ),
    "depthwise": (Stream, "depthwise", "head", _images),
    "layer norm": (lambda: Block(nn.LayerNorm, F.silu), "last", "head", _tokens),
    "torch's rms norm": (lambda: Block(nn.RMSNorm, F.silu), "last", "head", _tokens),
    "own rms norm": (lambda: Block(RootMeanSquare, F.gelu), "last", "head", _tokens),
    "gated": (lambda: Block(nn.LayerNorm, F.silu), "one", "two", _tokens),
}


@pytest.mark.parametrize("name", _MOVED)
def test_an_outlier_channel_costs_no_more_than_the_others(name: str, tmp_path: Path) -> None:
    """The file with it moved is as near to the float network as that of one without outliers."""
    make, maker, reader, inputs = _MOVED[name]
    torch.manual_seed(0)
    even = make().eval()
    model = copy.deepcopy(even)
    _outlier(model, maker, reader)
    x = inputs()
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(wanted, even(x), rtol=1e-3, atol=1e-4)
    errors = {}
    for label, network, on in (("even", even, True), ("off", model, False), ("on", model, True)):
        made = calibrate(_compressed(network, equalization=on), x)
        found = _of_file(made, x, tmp_path)
        errors[label] = float((found - wanted).square().mean() / wanted.square().mean())
    assert errors["on"] < 1.5 * errors["even"] + 1e-6, errors
    assert errors["on"] < 0.25 * errors["off"], errors


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_what_is_written_before_a_relu_or_a_mean_is_rounded_no_worse(
    parts: int, pooled: bool, tmp_path: Path
) -> None:
    """Scaled by what is left of them, channels would be written in steps as large as the others."""
    torch.manual_seed(0)
    model, x = Silenced(parts, pooled).eval(), _images()
    errors = {}
    for on in (False, True):
        found = _of_file(calibrate(_compressed(model, equalization=on), x), x, tmp_path)
        with torch.no_grad():
            errors[on] = float((found - model(x)).square().mean())
    assert errors[True] < 1.2 * errors[False], errors


@pytest.mark.parametrize("name", _MOVED)
def test_the_float_network_stays(name: str) -> None:
    make, maker, reader, inputs = _MOVED[name]
    torch.manual_seed(0)
    model = make().eval()
    _outlier(model, maker, reader)
    moved = copy.deepcopy(model)
    read = equalize(moved, _compressed(model), inputs())
    assert reader in read
    with torch.no_grad():
        fresh = torch.randn_like(inputs()) * 2
        torch.testing.assert_close(moved(fresh), model(fresh), rtol=1e-4, atol=1e-4)


def test_several_makers_of_one_activation_are_scaled_together() -> None:
    """Branch and stem end in one sum: what one of them makes, all that reads it reads."""
    torch.manual_seed(0)
    model = Stream().eval()
    with torch.no_grad():
        for layer in (model.stem, model.branch):
            layer.weight[1] *= 300
            layer.bias[1] *= 300
        model.branch.weight[:, 1] /= 300
        model.depthwise.weight[1] /= 300
    moved = copy.deepcopy(model)
    read = equalize(moved, _compressed(model), _images())
    assert {"branch", "depthwise"} <= set(read)
    with torch.no_grad():
        torch.testing.assert_close(moved(_images()), model(_images()), rtol=1e-4, atol=1e-4)
    assert float(moved.stem.weight[1].detach().abs().max()) < 0.1 * float(
        model.stem.weight[1].detach().abs().max()
    )


@pytest.mark.parametrize(
    "what", [nn.ReLU6(), nn.GELU(), nn.Hardswish(), nn.Tanh(), nn.GroupNorm(3, 12, affine=False)]
)
def test_what_is_no_product_keeps_its_scale(what: nn.Module) -> None:
    """A clip, a curve, a norm over channels: scales in front of them mean something."""
    torch.manual_seed(0)
    model = Between(what).eval()
    with torch.no_grad():
        model.one.weight[1] *= 300
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    equalize(model, _compressed(model), _images())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("make", [lambda: Between(nn.ReLU()), Stream])
def test_without_outliers_nothing_changes(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert equalize(model, _compressed(model), _images()) == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_four_bit_weights_gain_where_some_inputs_are_large(tmp_path: Path) -> None:
    """The weights that large inputs meet are rounded more finely (AWQ)."""
    errors = {}
    for on in (False, True):
        torch.manual_seed(0)
        model = Block(nn.LayerNorm, F.silu).eval()
        with torch.no_grad():
            model.last.weight[[1, 7]] *= 40  # and what reads them stays
        x = _tokens()
        made = calibrate(
            _compressed(model, Precision(4, 32), equalization=on, weight_rounding="nearest"), x
        )
        with torch.no_grad():
            wanted = model(x)
        found = _of_file(made, x, tmp_path)
        errors[on] = float((found - wanted).square().mean() / wanted.square().mean())
    assert errors[True] < 0.8 * errors[False], errors


def test_people_are_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Between(nn.ReLU()).eval()
    _outlier(model, "one", "two")
    made = calibrate(_compressed(model), _images())
    assert any("outlier" in note and "two" in note for note in made.notes)


class Awkward(nn.Module):
    """Layers that are called by name, a sample without a batch axis, a forward with limits."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
        self.head, self.last = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.two(F.relu(self.one(image))) for image in x]).mean((2, 3))
        if bool((y.abs() > 1e4).any()):
            raise ValueError("too large")
        return self.last(F.relu(self.head(input=y)))


def test_calls_of_any_kind_are_looked_at_without_harm() -> None:
    torch.manual_seed(0)
    model = Awkward().eval()
    _outlier(model, "one", "two")
    _outlier(model, "head", "last")
    moved = copy.deepcopy(model)
    equalize(moved, _compressed(model), _images())
    with torch.no_grad():
        torch.testing.assert_close(moved(_images()), model(_images()), rtol=1e-4, atol=1e-4)


def test_what_a_repeated_layer_reads_is_not_exchanged() -> None:
    """While inputs are looked at, every call gets its own."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
            self.seen: list[Tensor] = []
            self.two.register_forward_hook(lambda m, args, out: self.seen.append(args[0]))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.one(x))
            return (self.two(F.max_pool2d(x, 2)) + self.two(F.avg_pool2d(x, 2))).mean((2, 3))

    torch.manual_seed(0)
    model = Twice().eval()
    _outlier(model, "one", "two")
    assert equalize(model, _compressed(model), _images()) == ("two",)
    whole = [x for x in model.seen if len(x) == 64]
    assert len(whole) >= 2
    assert all(not torch.equal(a, b) for a, b in zip(whole[::2], whole[1::2], strict=True))


class Weighted(nn.Module):
    """A layer makes the weight of the model's first product, out of one vector without samples."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.made = nn.Parameter(torch.randn(4)), nn.Linear(4, 96)
        self.one, self.last = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.made(self.code).view(12, 8)))
        return self.last(F.relu(self.one(x)))


def test_inputs_without_samples_are_looked_at() -> None:
    torch.manual_seed(0)
    model, inputs = Weighted().eval(), torch.randn(64, 8)
    names = ("made", "one", "last")
    compressed = Compressed(
        model,
        Policy(),
        CompressionSettings(),
        precisions=dict.fromkeys(names, Precision(8, 8)),
        parts={name: (name,) for name in names},
    )
    moved = copy.deepcopy(model)
    equalize(moved, compressed, inputs)
    with torch.no_grad():
        torch.testing.assert_close(moved(inputs), model(inputs), rtol=1e-4, atol=1e-4)
    assert calibrate(compressed, inputs).ranges

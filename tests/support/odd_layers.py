"""Layers that add something to torch's own, and small networks of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.workloads.models import seeded


class SamePadding(nn.Conv2d):
    """Pads as TensorFlow does, by the size of its input; its first argument is no channel count."""

    def __init__(self, activation: str, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for size, k, s in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            more = max((-(-size // s) - 1) * s + k - size, 0)
            sides += [more // 2, more - more // 2]
        x = F.pad(x, sides)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StaticPadding(nn.Conv2d):
    """The same for one size of images, by a module that was made for it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, image_size: int):
        super().__init__(inputs, outputs, kernel)
        self.static_padding = nn.ZeroPad2d((0, kernel - 1, 0, kernel - 1))
        self.image_size = image_size

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.static_padding(x))


class Standardized(nn.Conv2d):
    """Its filters have mean 0 and variance 1 whatever its weight is."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class StandardizedSame(Standardized):
    """The same, padded by the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class WithNorm(nn.Conv2d):
    """A convolution with norm and activation inside, as in detection libraries."""

    def __init__(self, *args: int, norm: nn.Module, **more: object):
        super().__init__(*args, **more)  # type: ignore[arg-type]  # as the layer takes them
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return F.relu(self.norm(x))


class LowRankAdapter(nn.Linear):
    """A linear layer with a trained side branch of two thin ones."""

    def __init__(self, inputs: int, outputs: int, *, rank: int):
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(0.3 * torch.randn(rank, inputs))
        self.up = nn.Parameter(0.3 * torch.randn(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)


class Renamed(nn.Linear):
    """Adds nothing but another constructor."""

    def __init__(self, config: dict[str, int]):
        super().__init__(config["width"], config["width"])


class Conv1D(nn.Module):
    """GPT-2's linear layer: a weight with the inputs first."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class Around(nn.Module):
    """A layer between two plain convolutions, and a head."""

    def __init__(self, layer: nn.Module, inner: int = 8, outer: int = 8):
        super().__init__()
        self.stem = nn.Conv2d(3, inner, 3, padding=1)
        self.odd = layer
        self.last = nn.Conv2d(outer, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.odd(F.relu(self.stem(x))))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Rows(nn.Module):
    """A layer of features between two plain ones."""

    def __init__(self, layer: nn.Module, width: int = 8):
        super().__init__()
        self.stem, self.odd, self.head = nn.Linear(6, width), layer, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.odd(F.relu(self.stem(x)))))


def odd_network(name: str) -> nn.Module:
    """One of the networks below, in eval mode."""
    with seeded(3):
        return ODD[name]().eval()


def odd_inputs(name: str, count: int = 4) -> Tensor:
    """Inputs that fit."""
    generator = torch.Generator().manual_seed(5)
    shape = (6,) if name in ("adapter", "renamed", "conv1d") else (3, 8, 8)
    return torch.randn(count, *shape, generator=generator)


def _norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
        assert norm.running_mean is not None
        norm.running_mean.uniform_(-0.3, 0.3)
    return norm


ODD = {
    "same": lambda: Around(SamePadding("relu", 8, 8, 3, 2)),
    "static": lambda: Around(StaticPadding(8, 8, 3, image_size=8)),
    "standardized": lambda: Around(Standardized(8, 8, 3, padding=1)),
    "standardized_same": lambda: Around(StandardizedSame(8, 8, 3)),
    "with_norm": lambda: Around(WithNorm(8, 8, 3, padding=1, bias=False, norm=_norm())),
    "adapter": lambda: Rows(LowRankAdapter(8, 8, rank=2)),
    "renamed": lambda: Rows(Renamed({"width": 8})),
    "conv1d": lambda: Rows(Conv1D(8, 8)),
}

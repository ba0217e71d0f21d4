"""A small network of three convolutions and a linear layer, and its quantized versions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.calibrate import calibrate
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.workloads.models import seeded


class Small(nn.Module):
    """Three convolutions, one of them depthwise, and a linear layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.last = nn.Conv2d(width, 12, 1, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.last(F.relu(self.deep(x))))
        return self.head(x.mean((2, 3)))


def small(width: int = 8) -> nn.Module:
    """The network with fixed random weights."""
    with seeded(3):
        return Small(width).eval()


def images(count: int = 1) -> Tensor:
    """Standard normal images of 8 x 8."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def quantized(module: nn.Module, precisions: dict[str, Precision]) -> Compressed:
    """A module whose layers have these precisions, calibrated."""
    layers = {
        name: LayerPolicy(
            weight_bits=p.weight_bits,
            activation_bits=p.activation_bits,
            activation_scaling=p.activation_scaling,
        )
        for name, p in precisions.items()
    }
    settings = CompressionSettings()
    compressed = Compressed(module, Policy(layers), settings, precisions=precisions)
    return calibrate(compressed, images(32)) if precisions else compressed

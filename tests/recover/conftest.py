"""A tiny image problem, small networks, and a schedule that repeats bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autocompress.policy.recovery import Schedule
from autocompress.task.data import Data, Split


def scaled(stored: Tensor) -> Tensor:
    """From ``uint8`` to floats around zero."""
    return stored.float() / 127.5 - 1


class Net(nn.Module):
    """Two resolutions, batch norm and dropout."""

    def __init__(self, width: int = 4, classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, classes)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The feature maps that a tap on each resolution gives."""
        first = self.bn1(self.conv1(x))
        return first, self.conv2(first.relu())

    def forward(self, x: Tensor) -> Tensor:
        """From images to logits."""
        return self.head(self.drop(self.maps(x)[1].relu().mean((2, 3))))


@pytest.fixture
def make_net() -> Callable[..., Net]:
    """A network by seed; ``width``, ``classes`` and ``dropout`` as keywords."""

    def make(seed: int = 0, **kwargs: float) -> Net:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Net(**kwargs).eval()  # type: ignore[arg-type]  # sizes, whole or not

    return make


@pytest.fixture
def make_images() -> Callable[..., Data]:
    """Three classes of noisy 8x8 images that differ in the channel that is brighter."""
    return bright_channels


@pytest.fixture
def images() -> Data:
    """The easy ones: seen at a glance."""
    return bright_channels()


def bright_channels(contrast: int = 80) -> Data:
    """See ``make_images``."""
    generator = torch.Generator().manual_seed(5)

    def split(count: int) -> Split:
        targets = torch.arange(count) % 3
        stored = torch.randint(0, 160, (count, 3, 8, 8), generator=generator)
        stored[torch.arange(count), targets] += contrast
        return Split(stored.to(torch.uint8), targets, scaled)

    return Data(split(96), split(60), split(60), classes=3, name="bright channels")


@pytest.fixture
def schedule() -> Schedule:
    """Two epochs in float32 on the CPU."""
    return Schedule(epochs=2, batch_size=16, lr=0.05, precision="fp32", device="cpu")

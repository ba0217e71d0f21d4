"""Generated images of circles, squares and triangles, with the class of every pixel and the boxes.

A small U-Net that tells every pixel's class, and data for it; ``detector.py`` finds the boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.task.data import Data, Split
from autocompress.task.ready import segmentation
from autocompress.workloads.data import Normalize
from autocompress.workloads.models import seeded

CLASSES = ("circle", "square", "triangle")
SIZE, MOST = 64, 4
"""Side of an image, and shapes on it."""

_CORNERS = {1: 4, 2: 3}
_NORMALIZE = Normalize((0.5,) * 3, (0.25,) * 3)


@dataclass(frozen=True)
class Scenes:
    """Images and what is on them.

    Args:
        images: ``uint8`` ``(N, 3, 64, 64)``.
        pixels: class of every pixel ``(N, 64, 64)``: 0 is background, then ``CLASSES``.
        boxes: ``(N, 4, 5)``: class from 0, left, top, right, bottom in pixels; a class of -1 is
            no shape.
    """

    images: Tensor
    pixels: Tensor
    boxes: Tensor


def draw_scenes(count: int, generator: np.random.Generator) -> Scenes:
    """One to four shapes on a noisy background each, none over another.

    Args:
        count: of images.
        generator: of everything that is drawn.
    """
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    pixels = np.zeros((count, SIZE, SIZE), np.int64)
    boxes = np.zeros((count, MOST, 5), np.float32)
    boxes[:, :, 0] = -1
    for scene in range(count):
        paper = generator.uniform(40, 215, 3)
        canvas = np.broadcast_to(paper[:, None, None], (3, SIZE, SIZE)).copy()
        for number, (x, y, radius) in enumerate(_places(generator)):
            label = int(generator.integers(len(CLASSES)))
            inside = _shape(label, x, y, radius, generator)
            rows, columns = np.nonzero(inside)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            # at least 60 of 255 away from the background, in every color
            away = generator.uniform(60, 120, 3) * generator.choice((-1, 1), 3)
            canvas[:, inside] = (paper + away)[:, None]
            pixels[scene][inside] = label + 1
            boxes[scene, number] = (label, *box)
        noisy = canvas + generator.normal(0, 15, canvas.shape)
        images[scene] = noisy.clip(0, 255).astype(np.uint8)
    return Scenes(torch.from_numpy(images), torch.from_numpy(pixels), torch.from_numpy(boxes))


def _places(generator: np.random.Generator) -> list[tuple[float, float, float]]:
    """Middles and radii of circles that the shapes of one image lie in, none in another."""
    wanted = int(generator.integers(1, MOST + 1))
    found: list[tuple[float, float, float]] = []
    while len(found) < wanted:
        radius = generator.uniform(8, 14)
        x, y = generator.uniform(radius + 1, SIZE - radius - 1, 2)
        if all((x - a) ** 2 + (y - b) ** 2 > (radius + r + 2) ** 2 for a, b, r in found):
            found.append((x, y, radius))
        elif generator.random() < 0.01:  # these lie so that no more fit
            found = []
    return found


_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE] + 0.5


def _shape(
    label: int, x: float, y: float, radius: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """The pixels of one shape: a circle, or a regular polygon turned at random."""
    across, down = _COLUMNS - x, _ROWS - y
    corners = _CORNERS.get(label)
    if corners is None:
        return across**2 + down**2 < radius**2
    inside = np.ones((SIZE, SIZE), bool)
    first = generator.uniform(0, 2 * np.pi)
    for side in range(corners):
        angle = first + 2 * np.pi * side / corners
        edge = radius * np.cos(np.pi / corners)
        inside &= across * np.cos(angle) + down * np.sin(angle) < edge
    return inside


def shape_splits(
    counts: Sequence[int], seed: int
) -> tuple[tuple[Scenes, ...], tuple[Normalize, ...]]:
    """Scenes of the three splits, and how their images are normalized."""
    scenes = [draw_scenes(n, np.random.default_rng((seed, i))) for i, n in enumerate(counts)]
    return tuple(scenes), (_NORMALIZE,) * len(scenes)


def segment_shapes(train: int = 1000, val: int = 200, test: int = 300, seed: int = 0) -> Data:
    """Images ``(N, 3, 64, 64)`` and the class of every pixel ``(N, 64, 64)``.

    Args:
        train, val, test: images of each split.
        seed: of everything that is drawn.
    """
    scenes, normalize = shape_splits((train, val, test), seed)
    splits = [Split(s.images, s.pixels, n) for s, n in zip(scenes, normalize, strict=True)]
    first, second, third = splits
    return Data(first, second, third, name="shapes to segment", task=segmentation())


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions with batch norm.

    Args:
        inputs: channels that go in.
        outputs: channels of both.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """Down by halves, up by transposed convolutions, with what was seen on the way down beside it.

    Args:
        widths: channels at each size, from the largest image to the smallest.
        classes: of a pixel.
        in_channels: of the image.

    References:
        Ronneberger et al., U-Net, MICCAI 2015.
    """

    def __init__(self, widths: Sequence[int], classes: int, in_channels: int = 3) -> None:
        super().__init__()
        inputs = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(DoubleConv(i, o) for i, o in zip(inputs, widths, strict=True))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.join = nn.ModuleList(DoubleConv(2 * o, o) for _, o in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``(N, C, H, W)`` to logits ``(N, classes, H, W)``."""
        seen: list[Tensor] = []
        for number, level in enumerate(self.down):
            x = level(x if number == 0 else self.pool(x))
            seen.append(x)
        for grow, join, beside in zip(self.up, self.join, seen[-2::-1], strict=True):
            x = join(torch.cat([beside, grow(x)], 1))
        return self.head(x)


def unet(width: int = 8, seed: int = 0) -> nn.Module:
    """A U-Net of four sizes for ``segment_shapes``; the same seed draws the same weights."""
    with seeded(seed):
        return UNet([width * 2**level for level in range(4)], len(CLASSES) + 1)

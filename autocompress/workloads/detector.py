"""A small detector that finds shapes in one pass, without anchors; its outputs, loss and boxes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.task.data import Data, Split
from autocompress.task.divergence import SigmoidKL, SoftmaxKL
from autocompress.task.measures import box_iou
from autocompress.task.ready_sets import detection
from autocompress.workloads.models import seeded
from autocompress.workloads.shapes import CLASSES, SIZE, DoubleConv, shape_splits

STRIDE = 8
"""Pixels between two places that may hold the middle of a box."""
GRID = SIZE // STRIDE

_LEAST = 0.05


class Detector(nn.Module):
    """Says for every place of a grid whether a shape has its middle there, its box and its class.

    Args:
        width: channels of the first stage; each of the four has twice as many as the one before.
        classes: of a shape.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(4)]
        stages: list[nn.Module] = [DoubleConv(3, width)]
        for before, after in itertools.pairwise(widths):
            stages += [nn.MaxPool2d(2), DoubleConv(before, after)]
        self.backbone = nn.Sequential(*stages)
        self.neck = DoubleConv(widths[-1], widths[-2])
        self.head = nn.Conv2d(widths[-2], 5 + classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``(N, 3, H, W)`` to ``(N, 5 + classes, H / 8, W / 8)``.

        Channels: the logit of a shape, where its middle lies in the cell (a logit each for across
        and down), the logarithms of width and height over ``STRIDE``, the logits of its class.
        """
        return self.head(self.neck(self.backbone(x)))


def detector(width: int = 8, seed: int = 0) -> nn.Module:
    """A detector for ``detect_shapes``; the same seed draws the same weights."""
    with seeded(seed):
        return Detector(width, len(CLASSES))


def detect_shapes(train: int = 1500, val: int = 200, test: int = 300, seed: int = 0) -> Data:
    """Images ``(N, 3, 64, 64)`` and boxes ``(N, 4, 5)``, see ``shapes.Scenes``.

    Args:
        train, val, test: images of each split.
        seed: of everything that is drawn.
    """
    scenes, normalize = shape_splits((train, val, test), seed)
    splits = [Split(s.images, s.boxes, n) for s, n in zip(scenes, normalize, strict=True)]
    task = detection(find_boxes, detection_loss, detection_divergence, overlaps=(0.5,))
    first, second, third = splits
    return Data(first, second, third, name="shapes to detect", task=task)


def find_boxes(outputs: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What is seen on each image, surest first.

    A box that overlaps a surer one of its class by half is left out, and so is one that is less
    than 5 % sure.

    Args:
        outputs: of ``Detector``.

    Returns:
        Per image: boxes ``(K, 4)`` as left, top, right, bottom in pixels, scores in 0..1 and
        classes, ``(K,)`` each.
    """
    found = []
    for boxes, scores, labels in zip(*every_box(outputs), strict=True):
        order = scores.argsort(descending=True)
        left = order[scores[order] >= _LEAST]
        kept: list[int] = []
        while len(left):
            best, rest = left[0], left[1:]
            kept.append(int(best))
            same = labels[rest] == labels[best]
            over = box_iou(boxes[best][None], boxes[rest])[0] >= 0.5
            left = rest[~(same & over)]
        found.append((boxes[kept], scores[kept], labels[kept]))
    return found


def every_box(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of all places, ``(N, places, 4)``, their scores and classes ``(N, places)``."""
    rows, columns = torch.meshgrid(
        *(torch.arange(n, device=outputs.device) for n in outputs.shape[2:]), indexing="ij"
    )
    middle = STRIDE * (torch.stack([columns, rows]) + outputs[:, 1:3].sigmoid())
    half = STRIDE / 2 * outputs[:, 3:5].clamp(max=4).exp()
    boxes = torch.cat([middle - half, middle + half], 1).flatten(2).transpose(1, 2)
    likely, labels = outputs[:, 5:].flatten(2).softmax(1).max(1)
    return boxes, outputs[:, 0].flatten(1).sigmoid() * likely, labels


def detection_divergence(original: Tensor, compressed: Tensor) -> Tensor:
    """Nats per image: of a shape at every place; of its box and class as far as there is one.

    Boxes count as normal distributions of a standard deviation of a tenth of a cell, or of size.

    Args:
        original, compressed: outputs of ``Detector``.
    """
    both = (original, compressed)
    sure = original[:, 0].sigmoid()
    shape = SigmoidKL()(*(o[:, 0].flatten(1) for o in both))
    label = SoftmaxKL()(*(o[:, 5:].permute(0, 2, 3, 1).flatten(0, 2) for o in both))
    first, second = (torch.cat([o[:, 1:3].sigmoid(), o[:, 3:5]], 1) for o in both)
    box = ((first - second) / 0.1).square().sum(1) / 2
    return shape + (sure * (label.view_as(sure) + box)).flatten(1).sum(1)


def detection_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of a shape at every place; of box and class where there is one.

    Args:
        outputs: of ``Detector``.
        targets: boxes ``(N, M, 5)``, see ``shapes.Scenes``.
    """
    image, number = (targets[..., 0] >= 0).nonzero(as_tuple=True)
    real = targets[image, number]
    middle = (real[:, 1:3] + real[:, 3:5]) / (2 * STRIDE)
    size = (real[:, 3:5] - real[:, 1:3]) / STRIDE
    column, row = middle.long().clamp(0, GRID - 1).unbind(1)
    wanted = torch.zeros_like(outputs[:, 0])
    wanted[image, row, column] = 1.0
    there = outputs[image, :, row, column]
    shape = F.binary_cross_entropy_with_logits(outputs[:, 0], wanted, reduction="sum")
    place = F.l1_loss(there[:, 1:3].sigmoid(), middle - middle.floor(), reduction="sum")
    extent = F.l1_loss(there[:, 3:5], size.log(), reduction="sum")
    label = F.cross_entropy(there[:, 5:], real[:, 0].long(), reduction="sum")
    return (shape + 2 * place + 2 * extent + label) / len(targets)

"""A detector with outputs and a metric of its own, made here, at half its latency.

python examples/detector.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import autocompress as ac

SIZE, CELLS = 48, 6


def halving(inputs: int, outputs: int) -> list[nn.Module]:
    """A convolution that halves the image, and its norm."""
    conv = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Detector(nn.Module):
    """One box per cell of a grid: whether something is there, and how far it reaches."""

    middle: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *halving(1, width), *halving(width, 2 * width), *halving(2 * width, 2 * width)
        )
        self.neck = nn.Sequential(nn.Conv2d(2 * width, 64, 3, padding=1), nn.ReLU())
        self.score, self.box = nn.Conv2d(64, 1, 1), nn.Conv2d(64, 4, 1)
        line = (torch.arange(CELLS) + 0.5) / CELLS
        self.register_buffer("middle", torch.cartesian_prod(line, line).flip(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits ``(N, CELLS^2)`` and boxes ``(N, CELLS^2, 4)`` as x1, y1, x2, y2 in [0, 1]."""
        x = self.neck(self.body(x))
        low, high = self.box(x).flatten(2).transpose(1, 2).sigmoid().chunk(2, -1)
        return {
            "scores": self.score(x).flatten(1),
            "boxes": torch.cat([self.middle - low / 2, self.middle + high / 2], -1),
        }


def squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images with a bright square in each, and its box."""
    generator = torch.Generator().manual_seed(seed)
    side = 8 + 12 * torch.rand(count, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (SIZE - side)[:, None]
    box = torch.cat([corner, corner + side[:, None]], 1)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    x1, y1, x2, y2 = (box[:, i, None, None] for i in range(4))
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    noise = torch.randn(count, SIZE, SIZE, generator=generator)
    return (inside + 0.5 * noise).unsqueeze(1).float(), box / SIZE


def cell(box: Tensor) -> Tensor:
    """The cell that a box's centre lies in."""
    centre = ((box[:, :2] + box[:, 2:]) / 2 * CELLS).long().clamp(0, CELLS - 1)
    return centre[:, 1] * CELLS + centre[:, 0]


def loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Find the cell, and the box in it."""
    place = cell(targets)
    found = outputs["boxes"][torch.arange(len(targets)), place]
    return F.cross_entropy(outputs["scores"], place) + 5 * F.l1_loss(found, targets)


def overlap(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Intersection over union of the likeliest box with the true one, one number per image."""
    best = outputs["boxes"][torch.arange(len(targets)), outputs["scores"].argmax(1)]
    low, high = (
        torch.maximum(best[:, :2], targets[:, :2]),
        torch.minimum(best[:, 2:], targets[:, 2:]),
    )
    both = (high - low).clamp_min(0).prod(1)
    areas = [(b[:, 2:] - b[:, :2]).clamp_min(0).prod(1) for b in (best, targets)]
    return both / (areas[0] + areas[1] - both)


def trained(images: Tensor, boxes: Tensor) -> Detector:
    """The network after some epochs."""
    torch.manual_seed(0)
    model = Detector()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(15):
        for part in torch.randperm(len(images)).split(32):
            value = loss(model(images[part]), boxes[part])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return model.eval()


TASK = ac.Task(ac.TaskMetric("overlap", "fraction of 1", "max", overlap, per_sample=True), loss)


def main() -> None:
    """Search, and use what was found."""
    data = {name: squares(count, i) for i, (name, count) in enumerate(SPLITS.items())}
    result = ac.search(
        trained(*data["train"]),
        data,
        task=TASK,
        budget="latency<=0.5x",
        out="runs/detector",
        search={"trials": 10},
    )
    best = result.best.trial.measurement
    print(f"overlap {best['overlap']:.1%}, {best['latency_ms']:.3f} ms")


SPLITS = {"train": 768, "val": 256, "test": 256}

if __name__ == "__main__":
    main()

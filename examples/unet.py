"""A U-Net that marks discs, made here and trained for seconds, at half its latency.

python examples/unet.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import autocompress as ac

SIZE = 48


class UNet(nn.Module):
    """Two scales, one skip."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of background and disc, ``(N, 2, H, W)``."""
        skip = F.relu(self.first(x))
        low = F.relu(self.middle(F.relu(self.down(skip))))
        joined = torch.cat([skip, F.relu(self.up(low))], 1)
        return self.head(F.relu(self.last(joined)))


def discs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images with a disc in each, and which pixels are in it."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, 1, 1, generator=generator) * SIZE
    radius = 5 + 10 * torch.rand(count, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    inside = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2
    noise = torch.randn(count, SIZE, SIZE, generator=generator)
    return (inside + 0.8 * noise).unsqueeze(1).float(), inside.long()


def trained(images: Tensor, masks: Tensor) -> UNet:
    """The network after three epochs, which take some seconds."""
    torch.manual_seed(0)
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(3):
        for part in torch.randperm(len(images)).split(32):
            loss = F.cross_entropy(model(images[part]), masks[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    """Search, and use what was found."""
    data = {name: discs(count, i) for i, (name, count) in enumerate(SPLITS.items())}
    result = ac.search(
        trained(*data["train"]),
        data,
        task="segmentation",  # judged by the mean intersection over union
        budget="latency<=0.5x",
        out="runs/unet",
        search={"trials": 10},
    )
    best = result.best.trial.measurement
    print(f"mean_iou {best['miou']:.1%}, {best['latency_ms']:.3f} ms")


SPLITS = {"train": 384, "val": 128, "test": 128}

if __name__ == "__main__":
    main()

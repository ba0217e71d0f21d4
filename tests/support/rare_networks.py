"""Networks that hold, call or feed their layers in rare ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SeveralNames(nn.Module):
    """Layers that are called by their second names, and a block that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 12, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.again, self.parts = self.block, nn.ModuleDict({"x": self.enter})
        self.alone = nn.ModuleList([nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)])
        self.conv, self.norm = self.alone
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.block(F.relu(self.parts["x"](x))))
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class PlainLists(nn.Module):
    """Layers that are called out of a list, a dictionary and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.c = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)
        self.steps = [self.a, (self.norm, F.relu)]
        self.named = {"b": self.b, "more": [self.c]}

    def forward(self, x: Tensor) -> Tensor:
        x = self.steps[0](x)
        for step in self.steps[1]:
            x = step(x)
        x = F.relu(self.named["more"][0](F.relu(self.named["b"](x))))
        return self.head(x.mean((2, 3)))


class OtherNorms(nn.Module):
    """One convolution that runs three times, before another norm each time, beside a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        for norm in self.norms:
            x = x + F.relu(norm(self.again(x)))
        return self.head(x.mean((2, 3)))


class Constants(nn.Module):
    """Layers that read parameters alone: an image, queries, a table of positions; a made weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.made = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(4, 12 * 9)
        self.image, self.of_image = nn.Parameter(torch.randn(1, 4, 8, 8)), nn.Conv2d(4, 12, 1)
        self.queries, self.of_queries = nn.Parameter(torch.randn(5, 12)), nn.Linear(12, 12)
        self.places = nn.Parameter(torch.randn(1, 3, 3, 2))
        self.of_places = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 12))
        self.code, self.keys, self.head = (
            nn.Parameter(torch.randn(4)),
            nn.Linear(12, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x) + self.of_image(self.image))
        x = F.conv2d(x, self.made(self.code).view(12, 1, 3, 3), padding=1, groups=12)
        x = x.flatten(2).mT * self.of_places(self.places).mean((0, 1, 2))
        taken = (self.of_queries(self.queries) @ self.keys(x).mT).softmax(-1) @ x
        return self.head(taken.mean(1))


class Experts(nn.Module):
    """Each sample is sent to one of several experts; one of these never gets any."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.router, self.head = nn.Linear(10, 12), nn.Linear(12, 3), nn.Linear(12, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        bias = torch.tensor([0.0, 0.0, -100.0], dtype=x.dtype)
        chosen, out = (self.router(x) + bias).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, mine, expert(x[mine]))
        return self.head(x + out)


class Sampled(nn.Module):
    """A grid that the network says where to read, and a filter in frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.places = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.filter = nn.Parameter(torch.randn(8, 8, 5, 2) * 0.3)
        self.after, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        waves = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        x = x + torch.fft.irfft2(waves, s=(8, 8), norm="ortho")
        still = torch.eye(2, 3)[None].expand(len(x), -1, -1)
        grid = F.affine_grid(still, list(x.shape), align_corners=False)
        moved = grid + 0.3 * torch.tanh(self.places(x)).permute(0, 2, 3, 1)
        x = F.grid_sample(x, moved, align_corners=False)
        return self.head(F.relu(self.after(x)).mean((2, 3)))


class WindowAttention(nn.Module):
    """Attention within windows, with a table of numbers for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(12, 36), nn.Linear(12, 12)
        self.table = nn.Parameter(torch.randn(3, 16, 16) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 3, 4).permute(2, 0, 3, 1, 4)
        seen = (0.5 * q @ k.mT + self.table).softmax(-1)
        return self.project((seen @ v).transpose(1, 2).reshape(-1, 16, 12))


class Windows(nn.Module):
    """Such an attention, without a stream beside it, and a block."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.attention = nn.Conv2d(3, 12, 1), WindowAttention()
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 3, 5, 1)
        x = self.attention(x.reshape(-1, 16, 12))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.reshape(-1, 64, 12).mean(1))


class Bags(nn.Module):
    """Tables whose rows are summed, which in files are loops, beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.sum = (
            nn.EmbeddingBag(30, 8, mode="mean"),
            nn.EmbeddingBag(30, 8, mode="sum"),
        )
        self.numbers, self.head = nn.Linear(10, 12), nn.Linear(12, 3)
        self.join = nn.Linear(28, 12)

    def forward(self, x: Tensor) -> Tensor:
        ids = (9 * x.abs()).long().clamp(max=29)
        words = (self.mean(ids[:, :4]), self.sum(ids[:, 4:]))
        x = torch.cat([F.relu(self.numbers(x)), *words], 1)
        return self.head(F.relu(self.join(x)))


RARE: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (SeveralNames, PlainLists, OtherNorms, Constants, Experts, Sampled, Windows, Bags)
}


def inputs_of(name: str, count: int) -> Tensor:
    """Random inputs that fit a network."""
    shape = (10,) if name in ("Experts", "Bags") else (3, 8, 8)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))

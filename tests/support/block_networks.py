"""Networks with blocks, each with a way around them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Split

SETTINGS = CompressionSettings(calibration_images=16)
GONE = LayerPolicy(block="gone")


class Stage(nn.Module):
    """Blocks one after another; those in ``without`` are not run."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.without: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            if i not in self.without:
                x = block(x)
        return x


class Scaled(nn.Module):
    """A branch behind a norm, with a parameter for each channel and dropout behind it."""

    def __init__(self, branch: nn.Module, width: int) -> None:
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(width), branch
        self.gamma, self.drop = nn.Parameter(torch.rand(width) + 0.5), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.gamma * self.branch(self.norm(x)))


class Heads(nn.Module):
    """Attention with separate projections, through torch's fused product."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            layer(x).view(n, length, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        found = F.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).reshape(n, length, width))


class After(nn.Module):
    """BERT's order: dense, dropout, the stream added, and a norm that stays."""

    def __init__(self, branch: nn.Module, width: int) -> None:
        super().__init__()
        self.branch, self.drop, self.norm = branch, nn.Dropout(0.1), nn.LayerNorm(width)
        self.gone = False

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x if self.gone else self.drop(self.branch(x)) + x)


class Memory(nn.Module):
    """A recurrent layer around which the stream goes."""

    def __init__(self, width: int, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cell = kind(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.cell(x)
        found += x
        return found


class Strided(nn.Module):
    """A block that halves the maps; its stream goes through a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.project = nn.Conv2d(width, 2 * width, 1, 2)
        self.gone = False

    def forward(self, x: Tensor) -> Tensor:
        stream = self.project(x)
        if self.gone:
            return F.relu(stream)
        x = self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True))
        x += stream
        return F.relu(x, inplace=True)


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def vision() -> tuple[nn.Module, Tensor, list[str]]:
    """Pre-norm attention and MLPs, scaled."""
    stage = Stage(*(Scaled(Heads(8) if i % 2 == 0 else mlp(8), 8) for i in range(4)))
    model = nn.Sequential(nn.Linear(3, 8), stage, nn.LayerNorm(8), nn.Linear(8, 5))
    inner = ("query", "0", "query", "0")
    return model, torch.randn(4, 6, 3), [f"1.blocks.{i}.branch.{n}" for i, n in enumerate(inner)]


def memories() -> tuple[nn.Module, Tensor, list[str]]:
    """A stack of recurrent layers."""
    stage = Stage(Memory(8, nn.LSTM), Memory(8, nn.GRU), Memory(8, nn.LSTM))
    model = nn.Sequential(nn.Linear(3, 8), stage, nn.Linear(8, 5))
    return model, torch.randn(4, 6, 3), [f"1.blocks.{i}.cell" for i in range(3)]


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor, list[str]]]] = {
    "vision": vision,
    "memories": memories,
}


def bank_of(model: nn.Module, inputs: Tensor) -> LayerBank:
    inventory = take_inventory(model, inputs[:1])
    return LayerBank.build(model, inventory, Split(inputs, torch.arange(len(inputs)) % 5), SETTINGS)


def without(inventory: Inventory, *names: str) -> Policy:
    return Policy({n: GONE for b in inventory.blocks if b.name in names for n in b.layers})


def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(inputs)
    return found

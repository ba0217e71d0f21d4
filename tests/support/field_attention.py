"""Attention in the ways that people write it, and a vision transformer of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedAttention(nn.Module):
    """As timm writes it: one linear layer, literal numbers of heads and of their channels."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        stacked = self.qkv(x).reshape(count, tokens, 3, self.heads, self.each)
        query, key, value = stacked.permute(2, 0, 3, 1, 4).unbind(0)
        shares = (query @ key.transpose(-2, -1) * self.each**-0.5).softmax(-1)
        return self.project((shares @ value).transpose(1, 2).reshape(count, tokens, width))


class SeparateAttention(nn.Module):
    """As transformers writes it: three linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.project = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        shape = (count, tokens, self.heads, self.each)
        query, key, value = (
            layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self.project(x.reshape(count, tokens, self.heads * self.each))


class ChunkedAttention(nn.Module):
    """One linear layer, its outputs cut in three."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        query, key, value = (
            part.view(count, tokens, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        x = F.scaled_dot_product_attention(query, key, value)
        return self.project(x.transpose(1, 2).flatten(2))


class VisionTransformer(nn.Module):
    """One block, with a class token, positions and a layer scale."""

    def __init__(self, attention: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        width = 16
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, 5, width) * 0.1)
        self.norm1, self.attention = nn.LayerNorm(width), attention(width, 4)
        self.scale = nn.Parameter(torch.full((width,), 0.5))
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm3, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.scale * self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x)[:, 0])

"""Attention in the ways in which people write it, each between a residual stream and an MLP.

``ATTENTIONS`` maps a name to a factory and the number of units of heads that can go: of grouped
queries, those that share a key go together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, TOKENS = 32, 4, 6
EACH = WIDTH // HEADS


class Block(nn.Module):
    """A stream, an attention that is added to it, and an MLP; the mean of the tokens answers."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.enter, self.norm1, self.attention = nn.Linear(8, WIDTH), nn.LayerNorm(WIDTH), attention
        self.norm2, self.up, self.down = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 48),
            nn.Linear(48, WIDTH),
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Separate(nn.Module):
    """Four linear layers, and any way of attending between them.

    Args:
        attend: from query, key and value ``(N, heads, tokens, width)`` to contexts.
        keys: heads of keys and values.
    """

    def __init__(self, attend: Callable[..., Tensor], keys: int = HEADS) -> None:
        super().__init__()
        self.attend = attend
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, keys * EACH)
        self.value, self.project = nn.Linear(WIDTH, keys * EACH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        heads = [
            layer(x).view(count, tokens, -1, EACH).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        contexts = self.attend(*heads).transpose(1, 2)
        return self.project(contexts.reshape(count, tokens, WIDTH))


def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Two products and a softmax."""
    return (query @ key.mT * EACH**-0.5).softmax(-1) @ value


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A mask that is computed on the way."""
    scores = query @ key.mT * EACH**-0.5
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value


def einsums(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same by Einstein's sums."""
    shares = torch.einsum("nhqd,nhkd->nhqk", query, key).mul(EACH**-0.5).softmax(-1)
    return torch.einsum("nhqk,nhkd->nhqd", shares, value)


def folded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Heads and samples along one axis."""
    flat = [x.reshape(-1, x.shape[2], EACH) for x in (query * EACH**-0.5, key, value)]
    shares = torch.bmm(flat[0], flat[1].transpose(1, 2)).softmax(-1)
    return torch.bmm(shares, flat[2]).view(query.shape)


def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Several queries to a key, each key repeated."""
    each = query.shape[1] // key.shape[1]
    return products(query, key.repeat_interleave(each, 1), value.repeat_interleave(each, 1))


def rotary(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Queries and keys turned by their positions."""
    rates = 100.0 ** (-torch.arange(0, EACH, 2) / EACH)
    angles = (torch.arange(query.shape[2])[:, None] * rates).repeat(1, 2)

    def turned(x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    return F.scaled_dot_product_attention(turned(query), turned(key), value)


class Normed(nn.Module):
    """Queries and keys are normalized head by head."""

    def __init__(self) -> None:
        super().__init__()
        self.of_query, self.of_key = nn.LayerNorm(EACH), nn.RMSNorm(EACH)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.of_query(query), self.of_key(key), value)


class Relative(nn.Module):
    """A bias for every head and distance."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * TOKENS - 1, HEADS))
        places = torch.arange(TOKENS)
        self.register_buffer("distance", places[:, None] - places + TOKENS - 1)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias = self.table[self.distance.view(-1)].view(TOKENS, TOKENS, -1).permute(2, 0, 1)
        return (query @ key.mT * EACH**-0.5 + bias.unsqueeze(0)).softmax(-1) @ value


class Fused(nn.Module):
    """One linear layer makes queries, keys and values.

    Args:
        by_head: whether these stand side by side for every head, as in BLOOM and NeoX.
    """

    def __init__(self, by_head: bool) -> None:
        super().__init__()
        self.by_head = by_head
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        three = self.qkv(x)
        if self.by_head:
            heads = three.view(count, tokens, HEADS, 3 * EACH).transpose(1, 2).chunk(3, -1)
        else:
            heads = three.view(count, tokens, 3, HEADS, EACH).permute(2, 0, 3, 1, 4).unbind(0)
        contexts = F.scaled_dot_product_attention(*heads)
        return self.project(contexts.transpose(1, 2).reshape(count, tokens, width))


class Pointwise(nn.Module):
    """Convolutions of one place in the place of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.project = nn.Conv1d(WIDTH, 3 * WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.qkv(x.mT)
        query, key, value = three.view(len(x), 3, HEADS, EACH, x.shape[1]).unbind(1)
        shares = (query.mT @ key * EACH**-0.5).softmax(-1)
        return self.project((value @ shares.mT).reshape(x.mT.shape)).mT


class Multihead(nn.Module):
    """Of torch, on itself or on a memory of its own."""

    def __init__(self, batch_first: bool = True, memory: bool = False, **options: Any) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(3, 1, WIDTH)) if memory else None
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)

    def forward(self, x: Tensor) -> Tensor:
        first = self.inner.batch_first
        seen = x if self.memory is None else self.memory.expand(-1, len(x), -1).transpose(0, 1)
        query, seen = (x, seen) if first else (x.transpose(0, 1), seen.transpose(0, 1))
        found = self.inner(query, seen, seen, need_weights=False)[0]
        return found if first else found.transpose(0, 1)


ATTENTIONS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "scaled_dot_product_attention": (lambda: Separate(F.scaled_dot_product_attention), HEADS),
    "two products": (lambda: Separate(products), HEADS),
    "masked": (lambda: Separate(causal), HEADS),
    "einsum": (lambda: Separate(einsums), HEADS),
    "folded": (lambda: Separate(folded), HEADS),
    "grouped queries": (lambda: Separate(grouped, 2), 2),
    "one key for all": (lambda: Separate(products, 1), HEADS),
    "rotary": (lambda: Separate(rotary), HEADS),
    "normed": (lambda: Separate(Normed()), HEADS),
    "relative positions": (lambda: Separate(Relative()), HEADS),
    "fused": (lambda: Fused(by_head=False), HEADS),
    "fused by head": (lambda: Fused(by_head=True), HEADS),
    "convolutions": (Pointwise, HEADS),
    "nn.MultiheadAttention": (Multihead, HEADS),
    "nn.MultiheadAttention, tokens first": (lambda: Multihead(batch_first=False), HEADS),
    "nn.MultiheadAttention, memory": (lambda: Multihead(memory=True), HEADS),
}


def block(name: str) -> tuple[nn.Module, Tensor]:
    """A network with this attention, the same weights every time, and inputs for it."""
    from autocompress.workloads.models import seeded

    make, _ = ATTENTIONS[name]
    with seeded(0):
        model = Block(make()).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model, torch.randn(48, TOKENS, 8, generator=torch.Generator().manual_seed(1))

"""Attention that lost heads: its inner width is smaller than the width of the stream around it.

``torch.nn.MultiheadAttention`` and torchvision's window attention take the heads' width to be the
stream's width divided by the number of heads, so what stays of them needs modules of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import PolicyError
from autocompress.model.tied import exchange
from autocompress.model.tracing_stubs import is_attention, unfuse, why_whole

_APART = -100.0
"""Added to the scores of places that lie side by side only because the image was rolled."""


def without_heads(module: Any, gone: Sequence[int], name: str) -> nn.Module:
    """The same attention without some of its heads, or with narrower ones.

    Args:
        module: ``nn.MultiheadAttention`` or torchvision's ``ShiftedWindowAttention``; not changed.
        gone: inner channels that go: whole heads of them, or equally many of every head.
        name: of the module, for errors.

    Raises:
        PolicyError: no head would be left, or heads of unlike widths.
    """
    heads = int(module.num_heads)
    width = projection(module).in_features // heads
    left = [sorted({*range(h * width, (h + 1) * width)} - set(gone)) for h in range(heads)]
    kept = [h for h in range(heads) if left[h]]
    if not kept:
        raise PolicyError(f"Pruning must leave at least one head, {name!r} would keep none.")
    widths = {len(left[h]) for h in kept}
    if len(widths) > 1:
        raise PolicyError(
            f"All heads that stay must be of one width; of {name!r} they would have {widths}."
        )
    return _open(module, kept, [c for h in kept for c in left[h]])


def _open(module: Any, kept: Sequence[int], inner: Sequence[int]) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return FewerHeads(module, kept, inner)
    return FewerWindowHeads(module, kept, inner)


def opened(model: nn.Module) -> nn.Module:
    """The same model, its weights shared, whose attentions call their output projections as layers.

    Args:
        model: not changed, and handed back if it has no such attention; a change to a weight of one
            shows in the other.
    """
    found = [n for n, m in model.named_modules() if n and is_attention(m) and not why_whole(m)]
    if not found:
        return model
    tensors = (*model.parameters(), *model.buffers())
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    unfuse(copied)
    modules: dict[str, Any] = {name: copied.get_submodule(name) for name in found}
    exchange(copied, {name: without_heads(m, (), name) for name, m in modules.items()})
    return copied


def projection_of(model: nn.Module, name: str) -> str:
    """Name of the layer that reads what all heads of an attention give."""
    return f"{name}.out_proj" if hasattr(model.get_submodule(name), "out_proj") else f"{name}.proj"


def projection(module: Any) -> nn.Linear:
    """The layer that reads what all heads of an attention give."""
    found: nn.Linear = module.out_proj if hasattr(module, "out_proj") else module.proj
    return found


class _Rows:
    """Inner channels that stay, out of those of all heads of an attention."""

    def __init__(self, inner: Sequence[int], channels: int) -> None:
        self.inner = torch.tensor(inner)
        self.stacked = torch.cat([self.inner + part * channels for part in range(3)])
        self.whole = len(self.inner) == channels

    def of(self, values: Tensor, *, dim: int = 0, index: Tensor | None = None) -> nn.Parameter:
        """Those of a parameter; the parameter itself where all stay."""
        if self.whole:
            assert isinstance(values, nn.Parameter)
            return values
        chosen = self.stacked if index is None else index
        return nn.Parameter(values.detach().index_select(dim, chosen.to(values.device)))

    def reader(self, full: nn.Linear) -> nn.Linear:
        """The output projection, which reads the heads that stay; its bias is kept whole."""
        layer = nn.Linear(len(self.inner), full.out_features, full.bias is not None, "meta")
        layer.weight = self.of(full.weight, dim=1, index=self.inner)
        if full.bias is not None:
            layer.bias = full.bias if self.whole else nn.Parameter(full.bias.detach().clone())
        return layer


class FewerHeads(nn.Module):
    """What is left of a ``torch.nn.MultiheadAttention``; called like it.

    Args:
        full: whose weights are taken.
        kept: numbers of the heads that stay.
        inner: their channels that stay.

    References:
        Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2; pruning of heads:
        Michel et al., Are Sixteen Heads Really Better than One?, NeurIPS 2019.
    """

    def __init__(
        self, full: nn.MultiheadAttention, kept: Sequence[int], inner: Sequence[int]
    ) -> None:
        super().__init__()
        self.embed_dim, self.head_dim = full.embed_dim, len(inner) // len(kept)
        self.scale = full.head_dim**-0.5  # of the head as it was: scores stay as large
        self.num_heads, self.kept, self.all_heads = len(kept), tuple(kept), full.num_heads
        self.batch_first, self.dropout = full.batch_first, full.dropout
        # transformer layers ask for these before they choose their fused path
        self._qkv_same_embed_dim = True
        rows = _Rows(inner, full.embed_dim)
        assert full.in_proj_weight is not None
        self.in_proj_weight = rows.of(full.in_proj_weight)
        bias = full.in_proj_bias
        self.in_proj_bias = None if bias is None else rows.of(bias)
        self.out_proj = rows.reader(full.out_proj)
        # called with what the heads are made of, so that it can be watched
        self.takes_query, self.takes_key, self.takes_value = (nn.Identity() for _ in range(3))
        self.train(full.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``torch.nn.MultiheadAttention``; ``is_causal`` is a hint beside ``attn_mask``."""
        flip = query.dim() == 3 and not self.batch_first
        parts = self.in_proj_weight.split(self.num_heads * self.head_dim)
        shifts = (None,) * 3
        if self.in_proj_bias is not None:
            shifts = self.in_proj_bias.split(self.num_heads * self.head_dim)
        heads = []
        taken = (self.takes_query(query), self.takes_key(key), self.takes_value(value))
        for given, weight, shift in zip(taken, parts, shifts, strict=True):
            given = given.transpose(0, 1) if flip else given
            mapped = F.linear(given, weight, shift)
            heads.append(mapped.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2))
        q, k, v = heads
        scores = q @ k.transpose(-1, -2) * self.scale
        if attn_mask is not None:
            scores = scores + self._per_head(_additive(attn_mask, scores))
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, scores)
            scores = scores + padding.unsqueeze(-2).unsqueeze(-2)
        shares = F.dropout(scores.softmax(-1), self.dropout, self.training)
        contexts = (shares @ v).transpose(-3, -2).flatten(-2)
        # turned before the projection, so that what it gives is what the stream takes
        out = self.out_proj(contexts.transpose(0, 1) if flip else contexts)
        if not need_weights:
            return out, None
        return out, shares.mean(-3) if average_attn_weights else shares

    def _per_head(self, mask: Tensor) -> Tensor:
        """A mask that holds every head's own loses the rows of those that went."""
        if mask.dim() < 3:
            return mask
        return mask.unflatten(0, (-1, self.all_heads))[:, list(self.kept)]


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask of ``True`` where attention is forbidden, or of numbers, as numbers to add."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))


class FewerWindowHeads(nn.Module):
    """What is left of torchvision's shifted window attention; called like it.

    Args:
        full: whose weights are taken.
        kept: numbers of the heads that stay.
        inner: their channels that stay.

    References:
        Liu et al., Swin Transformer, ICCV 2021, section 3.2.
    """

    relative_position_index: Tensor

    def __init__(self, full: Any, kept: Sequence[int], inner: Sequence[int]) -> None:
        super().__init__()
        qkv: nn.Linear = full.qkv
        channels = full.proj.in_features
        self.num_heads, self.head_dim = len(kept), len(inner) // len(kept)
        self.scale = (channels // int(full.num_heads)) ** -0.5
        self.window_size: list[int] = list(full.window_size)
        self.shift_size: list[int] = list(full.shift_size)
        self.attention_dropout: float = full.attention_dropout
        self.dropout: float = full.dropout
        rows = _Rows(inner, channels)
        self.qkv = nn.Linear(channels, 3 * len(rows.inner), qkv.bias is not None, "meta")
        self.qkv.weight = rows.of(qkv.weight)
        if qkv.bias is not None:
            self.qkv.bias = rows.of(qkv.bias)
        self.proj = rows.reader(full.proj)
        table: nn.Parameter = full.relative_position_bias_table
        all_heads = table.shape[1] == len(kept)
        self.relative_position_bias_table = (
            table if all_heads else nn.Parameter(table.detach()[:, list(kept)])
        )
        self.register_buffer("relative_position_index", full.relative_position_index)
        self.train(full.training)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(N, H, W, C)`` to the same shape."""
        _, height, width, _ = x.shape
        tall, wide = self.window_size
        x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % tall))
        size = (x.shape[1], x.shape[2])
        # a window that covers the image has nothing to be shifted against
        shift = [
            s if w < n else 0 for s, w, n in zip(self.shift_size, (tall, wide), size, strict=True)
        ]
        rolled = torch.roll(x, [-s for s in shift], (1, 2)) if any(shift) else x
        out = self._attend(self._windows(rolled), self._apart(size, shift, x))
        across = size[1] // wide
        out = out.unflatten(2, (tall, wide)).unflatten(1, (-1, across))
        out = out.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        out = torch.roll(out, shift, (1, 2)) if any(shift) else out
        # projected where the stream has its places, not in windows
        out = F.dropout(self.proj(out), self.dropout, self.training)
        return out if size == (height, width) else out[:, :height, :width].contiguous()

    def _windows(self, x: Tensor) -> Tensor:
        """``(N, H, W, C)`` cut to ``(N, windows, places, C)``."""
        tall, wide = self.window_size
        cut = x.unflatten(2, (-1, wide)).unflatten(1, (-1, tall)).transpose(2, 3)
        return cut.flatten(3, 4).flatten(1, 2)

    def _attend(self, windows: Tensor, apart: Tensor | None) -> Tensor:
        """What all heads give, ``(N, windows, places, heads x head width)``."""
        three = self.qkv(windows).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = (part.transpose(-3, -2) for part in three.unbind(-3))
        places = windows.shape[2]
        bias = self.relative_position_bias_table[self.relative_position_index]
        scores = q @ k.transpose(-1, -2) * self.scale
        scores = scores + bias.view(places, places, self.num_heads).permute(2, 0, 1)
        if apart is not None:
            scores = scores + apart.unsqueeze(1)
        shares = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        return (shares @ v).transpose(-3, -2).flatten(-2)

    def _apart(self, size: tuple[int, int], shift: list[int], like: Tensor) -> Tensor | None:
        """``(windows, places, places)``: what keeps rolled-in places out of a window's business."""
        if not any(shift):
            return None
        stripes = []
        for length, window, moved in zip(size, self.window_size, shift, strict=True):
            at = torch.arange(length, device=like.device)
            stripes.append((at >= length - window).int() + (at >= length - moved).int())
        regions = 3 * stripes[0][:, None] + stripes[1]
        cut = self._windows(regions[None, :, :, None])[0, :, :, 0]
        strange = cut[:, :, None] != cut[:, None, :]
        return torch.zeros_like(strange, dtype=like.dtype).masked_fill(strange, _APART)

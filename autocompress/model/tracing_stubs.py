"""Kinds of modules that are one step, whatever their forward does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

RECURRENT = (nn.LSTM, nn.GRU)


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention whose heads can be told apart.

    Torchvision's window attention is known by name, so that torchvision need not be imported.
    """
    return isinstance(module, nn.MultiheadAttention) or (
        windowed(module) and type(module).__name__ == "ShiftedWindowAttention"
    )


def windowed(module: nn.Module) -> bool:
    """Whether a module is a window attention of torchvision's, of either version of Swin."""
    kind = type(module)
    return kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__.startswith(
        "ShiftedWindowAttention"
    )


def why_whole(attention: Any) -> str:
    """Why the heads of an attention cannot be told apart; empty where they can."""
    if isinstance(attention, nn.MultiheadAttention):
        if not attention._qkv_same_embed_dim:
            return "its keys and values come in widths of their own"
        if attention.bias_k is not None or attention.add_zero_attn:
            return "it adds keys and values that no input holds"
    return ""


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Let torch's attention and encoder layers run as they are written.

    Their fused path is one operator that reads the layers' weights by name: it calls no layer, no
    branch is seen in it, and no exporter knows it.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def unfuse(model: nn.Module) -> None:
    """Make transformer encoders call their layers from now on, in place.

    Their fused path reads the layers' weights by name, past what has been put in a layer's place.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # read by the choice of the path only
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def inner_width(attention: Any) -> int:
    """Channels of all heads of a window attention together."""
    return int(attention.proj.in_features)

"""The masked network: what a cut one must answer.

What reads the channels that go reads nothing: its weights are zero there. Where a mean over
channels is corrected, what makes them makes zeros as well: only then is the corrected mean that of
the whole network with zeros in the place of what went.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.model.call_sites import averages
from autocompress.model.sides import CallAxis, OwnAxis, Removals, Side


@contextmanager
def masked(model: nn.Module, removals: Removals) -> Iterator[None]:
    """Let what reads these channels read nothing, for the time being.

    Args:
        model: whole; its weights are as before at the end.
        removals: as ``SlicingPlan.removals`` gives them.
    """
    changed: dict[Tensor, Tensor] = {}
    with torch.no_grad():
        averaged = any(_is_mean(side) and gone for (_, side), gone in removals.items())
        for (name, side), gone in removals.items():
            module = model.get_submodule(name)
            makers = _makers(module, side, list(gone)) if averaged else ()
            for weight, places in (*_readers(module, side, list(gone)), *makers):
                if weight not in changed:
                    changed[weight] = weight.clone()
                weight[places] = 0
        try:
            yield
        finally:
            for weight, before in changed.items():
                weight.copy_(before)


def _readers(module: Any, side: Side, gone: list[int]) -> Iterator[tuple[Tensor, Any]]:
    """Weights by which a module reads channels, with the places of these channels."""
    if side == "heads":
        inner = module.out_proj if hasattr(module, "out_proj") else module.proj
        yield inner.weight, (slice(None), gone)
    elif isinstance(module, nn.LSTM | nn.GRU):
        yield from _recurrent_readers(module, side, gone)
    elif side == "in" and isinstance(module, nn.modules.conv._ConvTransposeNd):
        yield module.weight, gone
    elif side == "in" and isinstance(module, nn.modules.conv._ConvNd):
        per, rows = module.weight.shape[1], len(module.weight) // module.groups
        for channel in gone:
            group, place = divmod(channel, per)
            yield module.weight, (slice(group * rows, (group + 1) * rows), place)
    elif side == "in":
        yield module.weight, (slice(None), gone)


def _is_mean(side: Side) -> bool:
    return isinstance(side, CallAxis) and averages(side.call)


def _makers(module: Any, side: Side, gone: list[int]) -> Iterator[tuple[Tensor, Any]]:
    """Weights by which a module makes channels, with the places of these channels."""
    if isinstance(side, OwnAxis):
        yield getattr(module, side.attribute), (slice(None),) * side.axis + (gone,)
    elif side in ("out", "both") and not isinstance(module, nn.LSTM | nn.GRU):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) and side == "out"
        per = module.weight.shape[1] if transposed else 0
        for channel in gone if transposed else ():
            group, place = divmod(channel, per)
            rows = len(module.weight) // module.groups
            yield module.weight, (slice(group * rows, (group + 1) * rows), place)
        if not transposed and module.weight is not None:
            yield module.weight, gone
        if module.bias is not None:
            yield module.bias, gone


def _recurrent_readers(module: Any, side: Side, gone: list[int]) -> Iterator[tuple[Tensor, Any]]:
    """Inputs of the first layer; or what every layer reads of the units of this layer."""
    for name, weight in module.named_parameters():
        first = "_l0" in name
        if side == "in":
            if name.startswith("weight_ih") and first:
                yield weight, (slice(None), gone)
        elif name.startswith("weight_hh"):
            units = [i for i in gone if i < module.hidden_size]
            yield weight, (slice(None), units)
        elif name.startswith("weight_ih") and not first:
            yield weight, (slice(None), gone)

"""Batch norms that vanish into the layers before them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from autocompress.model.absent import Absent
from autocompress.model.usage import CONV, TRANSPOSED, usage

_NORM = nn.modules.batchnorm._BatchNorm


class _Tracer(fx.Tracer):
    """Keeps every layer as one node, subclasses of torch's too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, CONV | nn.Linear | Absent) or super().is_leaf_module(module, name)


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy whose batch norms are folded into the convolutions and linear layers before them.

    A norm is folded where torch.fx shows that its only input is the output of one such layer that
    nothing else reads. Models that cannot be traced keep their norms; the exporter folds what it
    can.
    """
    folded = copy.deepcopy(module).eval()
    try:
        graph = _Tracer().trace(folded)
    except Exception:  # forwards raise whatever they do with values that are none yet
        return folded
    for node in graph.nodes:
        if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        norm = folded.get_submodule(str(node.target))
        before = node.args[0]
        if (
            not isinstance(norm, _NORM)
            or before.op != "call_module"
            or len(before.users) != 1
            or norm.running_mean is None
        ):
            continue
        layer = folded.get_submodule(str(before.target))
        calls = [
            n
            for n in graph.nodes
            if n.op == "call_module" and n.target in (before.target, node.target)
        ]
        if len(calls) != 2 or not _takes_norm(layer):
            continue
        _replace(folded, str(before.target), _fused(layer, norm))
        _replace(folded, str(node.target), nn.Identity())
    return folded


def _takes_norm(layer: nn.Module) -> bool:
    """Whether a norm behind a layer can become part of its weight."""
    if not isinstance(layer, CONV | nn.Linear):
        return False
    if isinstance(layer, TRANSPOSED) and layer.groups > 1:
        return False
    found = usage(layer)
    return found.direct and not found.after


def _fused(layer: Any, norm: _NORM) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return torch.nn.utils.fusion.fuse_linear_bn_eval(layer, norm)
    transposed = isinstance(layer, TRANSPOSED)
    return torch.nn.utils.fusion.fuse_conv_bn_eval(layer, norm, transposed)


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    owner, _, child = name.rpartition(".")
    setattr(module.get_submodule(owner), child, new)

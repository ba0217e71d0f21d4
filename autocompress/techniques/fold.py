"""Batch norms that vanish into the layers before them."""

from __future__ import annotations

import copy

import torch
from torch import nn

_NORM = nn.modules.batchnorm._BatchNorm


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy whose batch norms are folded into the convolutions and linear layers before them.

    A norm is folded where torch.fx shows that its only input is the output of one such layer that
    nothing else reads. Models that cannot be traced keep their norms; the exporter folds what it
    can.
    """
    from torch import fx

    folded = copy.deepcopy(module).eval()
    try:
        graph = fx.Tracer().trace(folded)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError):
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
        if len(calls) != 2 or not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            continue
        fused = (
            torch.nn.utils.fusion.fuse_linear_bn_eval(layer, norm)
            if isinstance(layer, nn.Linear)
            else torch.nn.utils.fusion.fuse_conv_bn_eval(layer, norm)
        )
        _replace(folded, str(before.target), fused)
        _replace(folded, str(node.target), nn.Identity())
    return folded


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    owner, _, child = name.rpartition(".")
    setattr(module.get_submodule(owner), child, new)

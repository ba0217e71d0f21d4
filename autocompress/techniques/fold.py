"""Batch norms that vanish into the layers before them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from autocompress.model.absent import Absent
from autocompress.model.tied import exchange
from autocompress.model.usage import CONV, TRANSPOSED, usage

_NORM = nn.modules.batchnorm._BatchNorm


class _Tracer(fx.Tracer):
    """Keeps every layer as one node, subclasses of torch's too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, CONV | nn.Linear | Absent) or super().is_leaf_module(module, name)


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy whose batch norms are folded into the convolutions and linear layers before them.

    A norm is folded where torch.fx shows that it reads one such layer alone, whose outputs nothing
    else reads, at each of their calls. Models that cannot be traced keep their norms; the exporter
    folds what it can.
    """
    folded = copy.deepcopy(module).eval()
    try:
        graph = _Tracer().trace(folded)
    except Exception:  # forwards raise whatever they do with values that are none yet
        return folded
    fused: dict[str, nn.Module] = {}
    for node in graph.nodes:
        if node.op != "call_module" or node.target in fused:
            continue
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        norm = folded.get_submodule(str(node.target))
        layer = folded.get_submodule(str(before.target))
        if not isinstance(norm, _NORM) or norm.running_mean is None or not _takes_norm(layer):
            continue
        if _always_in_turn(graph, before.target, node.target):
            fused |= {str(before.target): _fused(layer, norm), str(node.target): nn.Identity()}
    exchange(folded, fused)
    return folded


def _always_in_turn(graph: fx.Graph, layer: fx.node.Target, norm: fx.node.Target) -> bool:
    """Whether each call of a norm reads one of a layer, which nothing else reads."""
    calls = [n for n in graph.nodes if n.op == "call_module"]
    layers, norms = ([n for n in calls if n.target == target] for target in (layer, norm))
    alone = all(len(call.users) == 1 for call in layers)
    return alone and len(layers) == len(norms) == sum(n.args[0] in layers for n in norms)


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

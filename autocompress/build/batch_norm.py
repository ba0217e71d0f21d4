"""Batch-norm statistics taken again on the compressed network's own activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autocompress.techniques.moments import check_inputs


@torch.no_grad()
def reestimate(module: nn.Module, inputs: Any, *, batch: int = 128) -> None:
    """Reset and re-estimate the running statistics of every batch norm, in place.

    It repairs what pruning shifted, but must not follow the sequential re-solve, whose weights
    rest on the statistics it left.

    Args:
        module: left in eval mode.
        inputs: training inputs, batch first; batches of one sample are skipped.
        batch: samples per pass.

    References:
        Li et al., EagleEye, ECCV 2020, section 3.3 (adaptive batch normalization).
    """
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    check_inputs(inputs)
    if not norms:
        return
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        for start in range(0, len(parts[0]), batch):
            chunk = tuple(p[start : start + batch] for p in parts)
            if len(chunk[0]) > 1:
                module(*chunk)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

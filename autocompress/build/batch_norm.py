"""Batch-norm statistics taken again on the compressed network's own activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autocompress.task.calling import call
from autocompress.task.nested import batch_size
from autocompress.techniques.moments import checked_portions


@torch.no_grad()
def reestimate(module: nn.Module, inputs: Any, *, batch: int = 128) -> None:
    """Reset and re-estimate the running statistics of every batch norm, in place.

    It repairs what pruning shifted, but must not follow the sequential re-solve, whose weights
    rest on the statistics it left.

    Args:
        module: left in eval mode.
        inputs: training inputs, batch first, or a split that gives them; batches of one sample are
            skipped.
        batch: samples per pass.

    References:
        Li et al., EagleEye, ECCV 2020, section 3.3 (adaptive batch normalization).
    """
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        for part in checked_portions(inputs, batch):
            if batch_size(part) > 1:
                call(module, part)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

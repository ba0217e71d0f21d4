"""The optimizer that a training schedule asks for."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from autocompress.policy.recovery import Schedule


def make_optimizer(
    schedule: Schedule, module: nn.Module, extra: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer over a module's trainable parameters.

    Args:
        schedule: which optimizer, and its settings.
        module: to be trained.
        extra: further parameters, such as the projections of feature distillation.
    """
    trainable = [p for p in (*module.parameters(), *extra) if p.requires_grad]
    decay = schedule.weight_decay
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr, betas=(schedule.momentum, 0.999))
    return torch.optim.SGD(
        groups, lr=schedule.lr, momentum=schedule.momentum, nesterov=schedule.momentum > 0
    )

"""How long and how a model is trained: plain, checked data, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from autocompress.recover.augment import check_names


class Schedule(BaseModel):
    """A training schedule; every one is annealed to zero, because only then can two be compared.

    Args:
        epochs: passes over the train split; may be a fraction.
        batch_size: samples per step; the last, smaller batch of an epoch is left out.
        optimizer: ``sgd`` (with Nesterov momentum) or ``adamw``.
        lr: the highest learning rate.
        momentum: of ``sgd``; the first beta of ``adamw``.
        weight_decay: on weights with two dimensions or more; biases, norms and quantization
            scales are spared.
        warmup: share of all steps in which the learning rate rises.
        anneal: ``cosine`` (linear rise, cosine fall) or ``one_cycle`` (cosine rise from a 25th
            over three tenths of the steps unless ``warmup`` says otherwise, cosine fall).
        label_smoothing: of the cross-entropy, in [0, 1); a loss of the data's own is not touched.
        augment: names of augmentations in place of the data's own; ``[]`` for none.
        ema: decay of an exponential moving average of the weights, which is then the result.
        grad_clip: largest norm of the whole gradient; ``null`` for no limit.
        precision: ``bf16`` runs convolutions and products in bfloat16; ``auto`` does so where
            the machine has instructions for it.
        device: ``auto`` (CUDA where present), ``cpu``, ``cuda`` or ``cuda:N``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float = Field(5.0, ge=0)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.02, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    warmup: float | None = Field(None, ge=0, lt=1)
    anneal: Literal["cosine", "one_cycle"] = "cosine"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augment: tuple[str, ...] | None = None
    ema: float | None = Field(None, gt=0, lt=1)
    grad_clip: float | None = Field(5.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"

    @field_validator("augment")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else check_names(names)

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of one step of ``total``; the last one is close to zero."""
        share = self.warmup if self.warmup is not None else _WARMUP[self.anneal]
        rise = share * total
        if step < rise:
            done = (step + 1) / (rise + 1)
            if self.anneal == "cosine":
                return self.lr * done
            return self.lr * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * done)) / 2)
        done = (step + 1 - rise) / (total + 1 - rise)
        return self.lr * (1 + math.cos(math.pi * done)) / 2

    def make_optimizer(
        self, module: nn.Module, extra: Iterable[nn.Parameter] = ()
    ) -> torch.optim.Optimizer:
        """The optimizer over a module's trainable parameters.

        Args:
            module: to be trained.
            extra: further parameters, such as the projections of feature distillation.
        """
        trainable = [p for p in (*module.parameters(), *extra) if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999))
        return torch.optim.SGD(
            groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0
        )


_WARMUP = {"cosine": 0.05, "one_cycle": 0.3}

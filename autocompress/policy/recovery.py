"""How models are trained in a study: schedules, teachers, and who is trained for how long."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from autocompress.policy.policy import Distill
from autocompress.policy.section import AsWritten, Section
from autocompress.policy.values import Factor, Features, Share, Temperature

Augmentation = Literal[
    "crop",
    "flip",
    "autoaugment",
    "randaugment",
    "trivialaugment",
    "erase",
    "cutmix",
    "mixup",
]

_WARMUP = {"cosine": 0.05, "one_cycle": 0.3}


class ModelSection(Section):
    """A trained model.

    Args:
        factory: ``package.module:function`` that returns an ``nn.Module``.
        args: keyword arguments of the factory.
        checkpoint: safetensors or torch state dict; ``null`` takes the factory's weights.
    """

    factory: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None


class Schedule(Section):
    """A training schedule; every one is annealed to zero, because only then can two be compared.

    Args:
        epochs: passes over the train split; may be a fraction. In ``recovery`` the section's own
            ``epochs`` hold.
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

    epochs: float = Field(5.0, ge=0, le=100_000)
    batch_size: int = Field(128, ge=1, le=1_000_000)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.02, gt=0, le=1000)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1000)
    warmup: float | None = Field(None, ge=0, lt=1)
    anneal: Literal["cosine", "one_cycle"] = "cosine"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augment: tuple[Augmentation, ...] | None = None
    ema: float | None = Field(None, gt=0, lt=1)
    grad_clip: float | None = Field(5.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"

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


class DistillationConfig(AsWritten):
    """How policies with distillation on are trained; what is left alone a policy decides.

    Args:
        temperature: ``null`` is the safe default: 2, and 1 where weights have 4 bits or fewer.
        weight: share of the teachers' term, in [0, 1].
        features: ``null``, ``hint`` or ``attention``.
        feature_weight: factor of the feature term.
        teachers: models as in ``model``; empty lets the uncompressed model teach.
        teacher_weights: one number per teacher, or ``quality`` (``accuracy`` says the same);
            ``null`` is equal.
        cached_draws: keep the teachers' outputs for so many fixed draws of augmentation; 0 draws
            anew in every epoch and asks the teachers every time.
    """

    temperature: Temperature | None = None
    weight: Share = 0.5
    features: Features | None = None
    feature_weight: Factor = 1.0
    teachers: tuple[ModelSection, ...] = ()
    teacher_weights: tuple[float, ...] | Literal["quality", "accuracy"] | None = None
    cached_draws: int = Field(0, ge=0)

    def over(self, asked: Distill | None) -> Distill:
        """What a policy asks for, with the fields that this section sets laid over it."""
        names = ("temperature", "weight", "features", "feature_weight")
        given = {name: getattr(self, name) for name in names if name in self.model_fields_set}
        return Distill(**{**(asdict(asked) if asked is not None else {}), **given})


class RecoveryConfig(Section):
    """How the best policies win quality back.

    Args:
        epochs: of the first rung; each further rung doubles them; 0 trains nothing: the most
            accurate candidates are only finished by the thorough reconstruction.
        rungs: at most so many.
        candidates: trials of the first rung: the most accurate within the budget, then the best
            of other cost bands.
        compare_distillation: train the first candidate with and without a teacher.
        qat: train quantized policies through fake quantization, which takes twice as long;
            ``auto`` does so where weights have fewer than 8 bits, others are rounded afterwards.
        schedule: how they are trained.
        distillation: how policies with distillation on are trained.
    """

    epochs: float = Field(0.0, ge=0, le=100_000)
    rungs: int = Field(1, ge=1, le=6)
    candidates: int = Field(3, ge=1)
    compare_distillation: bool = True
    qat: bool | Literal["auto"] = "auto"
    schedule: Schedule = Schedule()
    distillation: DistillationConfig = DistillationConfig()

"""Fine-tune a compressed model: labels, teachers, fake quantization."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from autocompress.errors import InputError
from autocompress.machine.progress import Progress
from autocompress.policy.recovery import Schedule
from autocompress.policy.registry import sets_weights
from autocompress.recover.distill import Distillation
from autocompress.recover.engine import WHOLE, EpochRecord, Trainer, TrainingPart
from autocompress.task.data import Data
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import trainable, trained


@dataclass
class FineTuned:
    """A trained model and how it came about.

    Args:
        module: in eval mode, on the CPU.
        compressed: what was given with the trained module (and learned ranges) in place;
            ``None`` where a bare module was given.
        history: one record per epoch.
        seconds: of training, over all interruptions.
        steps: optimizer steps.
    """

    module: nn.Module
    compressed: Compressed | None
    history: list[EpochRecord]
    seconds: float
    steps: int


def fine_tune(
    compressed: Compressed | nn.Module,
    data: Data,
    schedule: Schedule,
    *,
    distillation: Distillation | None = None,
    qat: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint_path: str | Path | None = None,
    checkpoint_every: float = 60.0,
    part: TrainingPart = WHOLE,
) -> FineTuned:
    """Train a compressed model (or any module) on the train split.

    The given model is not changed. Weights that a sparse policy set to zero stay zero. Nothing
    but the train split is read, except for teachers weighted by validation quality.

    Args:
        compressed: a compressed model, or a bare module.
        data: see ``Data.wrap`` for loaders and data sets of yours; their task's loss is used.
        schedule: how long and how.
        distillation: teachers, or ``None`` for labels alone.
        qat: train through fake quantization (straight-through gradients, learned ranges), so
            that the weights suit the integer file; the policy must quantize a layer.
        seed: of order, augmentation and dropout; same seed, same result.
        progress: called with a text and the fraction done.
        checkpoint_path: training goes on from here after an interruption, bit for bit; removed
            at the end.
        checkpoint_every: seconds between checkpoints.
        part: in a training that many share; the whole of it by default.

    Returns:
        The trained model.

    Raises:
        InputError: ``qat`` on a model without a quantized layer.
        TrainingDiverged: the loss or a weight became NaN or infinite.
    """
    policy = compressed.policy if isinstance(compressed, Compressed) else None
    precisions = compressed.precisions if isinstance(compressed, Compressed) else {}
    sparse = policy is not None and any(map(sets_weights, policy.layers.values()))
    trainer = Trainer(
        _training_module(compressed, qat),
        data,
        schedule,
        seed=seed,
        distillation=distillation,
        lowest_bits=min((p.weight_bits for p in precisions.values()), default=32),
        keep_zeros=sparse,
        part=part,
        identity=f"{policy.digest if policy is not None else 'module'}|{qat}",
    )
    path = Path(checkpoint_path) if checkpoint_path is not None else None
    trainer.run(progress=progress, checkpoint=path, checkpoint_every=checkpoint_every)
    if path is not None:
        path.unlink(missing_ok=True)
    return _trained(compressed, trainer, qat)


def _training_module(compressed: Compressed | nn.Module, qat: bool) -> nn.Module:
    if not qat:
        module = compressed.module if isinstance(compressed, Compressed) else compressed
        return copy.deepcopy(module)
    if not isinstance(compressed, Compressed) or not compressed.quantized:
        raise InputError(
            "Quantization-aware training needs a policy that quantizes at least one layer; this "
            "one has none. Set `qat: false`, or give a layer `weight_bits: 8`."
        )

    return trainable(compressed)


def _trained(compressed: Compressed | nn.Module, trainer: Trainer, qat: bool) -> FineTuned:
    module = trainer.result
    done = None
    if isinstance(compressed, Compressed):
        done = compressed.with_weights(module, qat=False)
        if qat:
            done = trained(module, compressed)
            module = done.module
    return FineTuned(module, done, trainer.history, trainer.seconds, trainer.step)

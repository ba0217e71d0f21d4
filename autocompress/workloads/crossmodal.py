"""Across modalities: a network that sees a digit's image teaches one that reads it as a sequence.

Every sample is stored twice: as a sequence of coarse rows, which the model reads from top to
bottom, and as the whole image, which only the teacher sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.machine.progress import Progress
from autocompress.policy.recovery import Schedule
from autocompress.task.data import Data, Split
from autocompress.workloads.baseline import train_baseline
from autocompress.workloads.cache import cache_folder
from autocompress.workloads.data import digits, scale
from autocompress.workloads.models import digits_resnet, seeded
from autocompress.workloads.sequences import SequenceLSTM


@dataclass(frozen=True)
class RowsView:
    """From stored ``(rows, images)`` to the model's input: rows ``(N, T, D)`` in 0..1."""

    def __call__(self, stored: tuple[Tensor, Tensor]) -> Tensor:
        """The first part, scaled."""
        return stored[0].float() / 255


@dataclass(frozen=True)
class TeacherView:
    """From stored ``(rows, images)`` to the teacher's input: normalized images."""

    def __call__(self, stored: tuple[Tensor, Tensor]) -> Tensor:
        """The second part, normalized as ``digits`` does it."""
        return scale(stored[1])


def digits_sequence(size: int = 16, steps: int = 8, seed: int = 0) -> Data:
    """The digits as sequences, with the images beside them for a teacher.

    Args:
        size: of the teacher's images.
        steps: rows of a sequence; each has as many values.
        seed: of the split; the same splits as ``digits`` with that seed.

    Returns:
        Inputs ``(N, steps, steps)``; ``extra["teacher_view"]`` gives the teacher its images
        ``(N, 1, size, size)``.
    """
    image = digits(size, seed=seed)

    def pair(split: Split) -> Split:
        assert isinstance(split.stored, Tensor)
        small = F.interpolate(split.stored.float(), (steps, steps), mode="area").round()
        rows = small.squeeze(1).to(torch.uint8)
        return Split((rows, split.stored), split.targets, RowsView())

    return Data(
        pair(image.train),
        pair(image.val),
        pair(image.test),
        classes=10,
        name="digits as sequences",
        extra={"teacher_view": TeacherView()},
    )


def digits_lstm(hidden: int = 64, embed: int = 32, steps: int = 8, seed: int = 0) -> nn.Module:
    """The reader of sequences; the same seed draws the same first weights."""
    with seeded(seed):
        return SequenceLSTM(steps, embed, hidden, 10)


def image_teacher(
    width: int = 16, epochs: float = 12, seed: int = 0, progress: Progress | None = None
) -> nn.Module:
    """The image network, trained on the spot; its weights are kept in the cache folder.

    Args:
        width: of its first stage.
        epochs: of training; seconds in all.
        seed: of the data's split, which must be the model's, and of the weights.
        progress: called with a text and the fraction done.
    """
    return train_baseline(
        digits_resnet(width=width, seed=seed),
        digits(seed=seed),
        Schedule(epochs=epochs, batch_size=64, lr=0.1),
        cache_folder() / "baselines",
        progress=progress,
    )

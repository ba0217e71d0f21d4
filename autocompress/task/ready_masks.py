"""Ready-made tasks that judge every pixel of a mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.results.metric import FRACTION
from autocompress.task.divergence import SigmoidKL, SoftmaxKL
from autocompress.task.measures import BinaryIou, MeanIou
from autocompress.task.metrics import TaskMetric
from autocompress.task.pick import the_tensor
from autocompress.task.targets import class_targets, mask_notes, mask_targets
from autocompress.task.task import Loss, Task, ready_made


@ready_made
def segmentation(
    ignore: int = 255, output: str | None = None, loss: Loss | None = None, axis: int = 1
) -> Task:
    """A class per pixel, logits ``(N, classes, H, W)``; judged by the mean IoU.

    Args:
        ignore: target of pixels that count nowhere.
        output: path of the logits (``out`` of torchvision's models).
        loss: in place of the cross-entropy.
        axis: of the classes.
    """

    def read(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, str]:
        logits = the_tensor(outputs, output).movedim(axis, -1)
        if logits.shape[-1] == 1:
            raise InputError(
                "One channel is one logit per pixel, foreground or not: `task: "
                "binary_segmentation`."
            )
        positions = tuple(logits.shape[1:-1])
        found, note = class_targets(targets, logits.shape[-1], positions, ignore)
        return logits, found, note

    def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
        logits = the_tensor(outputs, output).movedim(axis, 1)
        return F.cross_entropy(
            logits, targets.reshape(len(logits), *logits.shape[2:]).long(), ignore_index=ignore
        )

    return Task(
        TaskMetric("miou", FRACTION, "maximize", lambda: MeanIou(read, ignore)),
        loss or cross_entropy,
        SoftmaxKL(output, axis=axis, ignore=ignore),
        name="segmentation",
        check=partial(_noted, read, ignore),
    )


@ready_made
def binary_segmentation(
    ignore: int = 255, output: str | None = None, loss: Loss | None = None
) -> Task:
    """Foreground or not, one logit per pixel ``(N, 1, H, W)`` or ``(N, H, W)``; judged by the IoU.

    Targets are 0 and 1, ``(N, H, W)`` or ``(N, 1, H, W)``. The IoU is that of the foreground.

    Args:
        ignore: target of pixels that count nowhere.
        output: path of the logits, where the model gives several tensors.
        loss: in place of the binary cross-entropy.
    """

    def read(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, str]:
        logits = the_tensor(outputs, output)
        return logits, *mask_targets(targets, logits, ignore)

    def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
        logits = the_tensor(outputs, output)
        wanted = targets.reshape(logits.shape)
        counted = (wanted != ignore).to(logits)
        each = F.binary_cross_entropy_with_logits(
            logits, (wanted == 1).to(logits), weight=counted, reduction="sum"
        )
        return each / counted.sum().clamp(min=1)

    return Task(
        TaskMetric("iou", FRACTION, "maximize", lambda: BinaryIou(read, ignore)),
        loss or cross_entropy,
        SigmoidKL(output, positions=True),
        name="binary segmentation",
        check=partial(_noted, read, ignore),
    )


def _noted(
    read: Callable[[Any, Tensor], tuple[Tensor, Tensor, str]],
    ignore: int,
    outputs: Any,
    targets: Tensor,
) -> list[str]:
    """What to say of a batch: how its targets were read, and what the masks hold."""
    _, found, note = read(outputs, targets)
    return [note, *mask_notes(found, ignore)]

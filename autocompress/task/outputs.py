"""What a model's outputs mean, and what is right or wrong about them.

Where no task states this, it is read from shapes and targets, here alone.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError

OutputKind = Literal["classes", "binary", "value"]


def output_kind(outputs: Tensor, targets: Tensor) -> OutputKind:
    """What a model's outputs mean, from their shape and the data's targets.

    Two or more columns are the logits of as many classes. One column is the logit of class 1
    (``binary``) where every target is 0 or 1, and a predicted number (``value``) otherwise.

    Args:
        outputs: ``(N, ..., columns)``, or ``(N,)`` for one column.
        targets: of a whole split, so that a batch that happens to hold 0 and 1 decides nothing.
    """
    if outputs.dim() > 1 and outputs.shape[-1] > 1:
        return "classes"
    return "binary" if bool(((targets == 0) | (targets == 1)).all()) else "value"


def class_logits(outputs: Tensor, kind: OutputKind) -> Tensor:
    """The logits of all classes, ``(N, ..., classes)``.

    One logit x of class 1 says the same as the logits (0, x) of two classes.

    Raises:
        InputError: outputs that are no logits of classes.
    """
    if kind == "binary":
        column = outputs if outputs.dim() > 1 else outputs[:, None]
        return F.pad(column, (1, 0))
    if kind == "value" or outputs.dim() < 2 or outputs.shape[-1] < 2:
        raise InputError(
            f"Outputs of shape {tuple(outputs.shape)} are no logits of two or more classes: over "
            "one column a softmax is always 1. Give the data a `metric` and a `loss`, or let the "
            "targets of a single logit be 0 and 1."
        )
    return outputs


def label_loss(
    outputs: Tensor, targets: Tensor, kind: OutputKind, smoothing: float = 0.0
) -> Tensor:
    """The loss towards the labels where the data bring none: their negative log-likelihood.

    Cross-entropy for classes (per position too) and for one logit, mean squared error for numbers.

    Args:
        outputs: of one batch.
        targets: of the same batch; class indices or probabilities, or numbers.
        kind: of the outputs.
        smoothing: of the classes' labels.

    Raises:
        InputError: other numbers of outputs and targets.
    """
    if kind != "classes" and outputs.numel() != targets.numel():
        raise InputError(
            f"One column of outputs needs one target each, got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}. Give the data a `loss`."
        )
    if kind == "value":
        return F.mse_loss(outputs.flatten(), targets.flatten().to(outputs.dtype))
    logits = class_logits(outputs, kind)
    if kind == "binary":
        targets = targets.reshape(logits.shape[:-1]).long()
    if targets.dim() > 1 and targets.shape == logits.shape[:-1]:  # a class per position
        logits, targets = logits.flatten(0, -2), targets.flatten()
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def hits(outputs: Tensor, targets: Tensor, kind: OutputKind | None = None) -> Tensor:
    """Whether the most likely class is the target, ``(N, ...)``.

    Args:
        outputs: of a whole split; logits of classes, or one logit.
        targets: of the same split.
        kind: of the outputs, where these are of one batch only.

    Raises:
        InputError: outputs that are numbers; only the data's own metric can judge them.
    """
    kind = kind or output_kind(outputs, targets)
    if kind == "value":
        raise InputError(
            f"Outputs of shape {tuple(outputs.shape)} with targets other than 0 and 1 are numbers, "
            "which are neither right nor wrong: there is no top-1 accuracy. Say `task: regression` "
            "in the study's `data`, or give the data a `metric` where more is better."
        )
    guessed = class_logits(outputs, kind).argmax(-1)
    return guessed == (targets.reshape(guessed.shape) if kind == "binary" else targets)

"""Targets held against outputs: converted where there is one way to read them, else refused."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.errors import InputError


def class_targets(
    targets: Tensor, classes: int, positions: tuple[int, ...] = (), ignore: int | None = None
) -> tuple[Tensor, str]:
    """Targets as class indices, ``(N, *positions)`` of ``int64``.

    Args:
        targets: indices of any integer or float type, with or without a last axis of 1, or one-hot
            (or probabilities, of which the largest counts) with a last axis of ``classes``.
        classes: of the outputs.
        positions: axes of the outputs between samples and classes.
        ignore: an index that marks positions without a target.

    Returns:
        The indices, and how they were read where that is not plain.

    Raises:
        InputError: other shapes, fractions, not a number, or indices out of range.
    """
    refuse_nan(targets)
    note = ""
    wanted = (len(targets), *positions)
    if targets.shape == (*wanted, classes) and classes > 1:
        return _one_hot(targets), "targets with one column per class are read as one-hot"
    if targets.shape == (*wanted, 1):
        targets, note = targets.squeeze(-1), "targets of shape (N, 1) are read as (N,)"
    if targets.shape != wanted:
        raise InputError(
            f"Outputs of {classes} classes need targets of shape {_shape(positions)}, got "
            f"{tuple(targets.shape)}. Several labels per sample: `task: multi_label`; numbers: "
            "`task: regression`."
        )
    if targets.is_floating_point():
        if not bool((targets == targets.round()).all()):
            raise InputError(
                f"Targets such as {float(targets.flatten()[0]):g} are no class indices. Numbers: "
                "`task: regression`."
            )
        note = note or "float targets without fractions are read as class indices"
    targets = targets.long()
    counted = targets if ignore is None else targets[targets != ignore]
    if len(counted.flatten()):
        _check_range(int(counted.min()), int(counted.max()), classes)
    return targets, note


def is_one_hot(targets: Tensor) -> bool:
    """Whether rows are one-hot, or probabilities."""
    total = targets.sum(-1, dtype=torch.float64)
    return bool((targets >= 0).all()) and bool(((total - 1).abs() <= 1e-3).all())


def _one_hot(targets: Tensor) -> Tensor:
    if not is_one_hot(targets):
        raise InputError(
            f"Targets of shape {tuple(targets.shape)} are neither one-hot nor probabilities: rows "
            "do not sum to 1. Several labels per sample: `task: multi_label`; numbers: "
            "`task: regression`."
        )
    return targets.argmax(-1)


def _check_range(low: int, high: int, classes: int) -> None:
    if low >= 0 and high < classes:
        return
    from_one = " Labels that begin at 1 need 1 taken off." if (low, high) == (1, classes) else ""
    marked = (
        f" Where {low} marks positions without a target, say so: `args: {{ignore: {low}}}` of "
        "`token_classification`, `segmentation` or a language model."
        if low < 0
        else ""
    )
    raise InputError(
        f"Targets go from {low} to {high}, but the outputs have {classes} classes, 0 to "
        f"{classes - 1}.{from_one}{marked}"
    )


def mask_targets(targets: Tensor, outputs: Tensor, ignore: int) -> tuple[Tensor, str]:
    """Targets of one logit per pixel: 0, 1 and what is ignored, in the shape of the outputs.

    Raises:
        InputError: other shapes, or other values.
    """
    refuse_nan(targets)
    each, own = tuple(outputs.shape[1:]), tuple(targets.shape[1:])
    without = each[1:] if each[:1] == (1,) else None
    if own not in (each, without, (1, *each)):
        raise InputError(
            f"One logit per pixel, of shape {_shape(each)}, needs a target each, got "
            f"{_shape(own)}. A class of several per pixel needs a channel per class: `task: "
            "segmentation`."
        )
    odd = targets[(targets != 0) & (targets != 1) & (targets != ignore)]
    if len(odd):
        raise InputError(
            f"Masks must be 0 or 1 ({ignore} is ignored), found {float(odd[0]):g}. {FOREGROUND}"
        )
    found = targets.reshape(len(targets), *each).long()
    return found, "" if own == each else f"masks of shape {_shape(own)} are read as {_shape(each)}"


FOREGROUND = (
    "Where more than 0 is foreground, say so where masks are read, in the data set or with "
    "`target_fn`: `target_fn=lambda batch: (batch[1] > 0).long()`."
)


def mask_notes(masks: Tensor, ignore: int) -> list[str]:
    """What people should know of masks: how much is ignored, and whether the rest varies."""
    counted = masks[masks != ignore]
    left_out = 1 - len(counted) / max(1, masks.numel())
    same = len(counted) > 0 and bool((counted == counted[0]).all())
    notes = []
    if left_out:
        notes.append(f"{left_out:.1%} of the pixels have the target {ignore} and count nowhere")
    if same:
        notes.append(f"all pixels that count are of class {int(counted[0])}")
    return notes


def flag_targets(targets: Tensor, outputs: Tensor) -> tuple[Tensor, str]:
    """Targets as 0.0 and 1.0, in the shape of the outputs.

    Raises:
        InputError: other shapes, or values other than 0 and 1.
    """
    refuse_nan(targets)
    found, note = _like(targets, outputs)
    if not bool(((found == 0) | (found == 1)).all()):
        odd = found[(found != 0) & (found != 1)].flatten()[0]
        raise InputError(
            f"Labels must be 0 or 1, found {float(odd):g}. One class of several per sample: "
            "`task: classification`; numbers: `task: regression`."
        )
    return found, note


def number_targets(targets: Tensor, outputs: Tensor) -> tuple[Tensor, str]:
    """Targets as numbers in the shape of the outputs: ``(N,)`` beside ``(N, 1)`` would spread.

    Raises:
        InputError: other shapes, or not a number.
    """
    refuse_nan(targets)
    return _like(targets, outputs)


def _like(targets: Tensor, outputs: Tensor) -> tuple[Tensor, str]:
    each = tuple(outputs.shape[1:])
    own = tuple(targets.shape[1:])
    if own != each:
        if [s for s in own if s > 1] != [s for s in each if s > 1]:
            raise InputError(
                f"Outputs of shape {_shape(each)} need targets alike, got {_shape(own)}."
            )
        shown = f"targets of shape {_shape(own)} are read as {_shape(each)}"
        return targets.reshape(len(targets), *each).to(outputs.dtype), shown
    return targets.to(outputs.dtype), ""


def refuse_nan(targets: Tensor) -> None:
    """Refuse targets that are not a number.

    Raises:
        InputError: there are such.
    """
    if targets.is_floating_point():
        bad = int((~torch.isfinite(targets)).sum())
        if bad:
            raise InputError(
                f"{bad} of {targets.numel()} targets are not finite (NaN or infinite). Leave these "
                "samples out of the data."
            )


def _shape(axes: tuple[int, ...]) -> str:
    return f"(N{''.join(f', {a}' for a in axes)}{',' if not axes else ''})"

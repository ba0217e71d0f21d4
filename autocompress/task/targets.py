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


def _one_hot(targets: Tensor) -> Tensor:
    total = targets.double().sum(-1)
    if bool((targets < 0).any()) or bool(((total - 1).abs() > 1e-3).any()):
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
        " Where it marks positions without a target, say so: `task: {factory: "
        f"token_classification, args: {{ignore: {low}}}}}`."
        if low < 0
        else ""
    )
    raise InputError(
        f"Targets go from {low} to {high}, but the outputs have {classes} classes, 0 to "
        f"{classes - 1}.{from_one}{marked}"
    )


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

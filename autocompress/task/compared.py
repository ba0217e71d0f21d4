"""Whether two answers are the same but for rounding, of models that are tried or written.

Each number is held against itself, and against what is usual in its tensor. One huge entry (a mask
of -1e9, the least number of a type) hides nothing that way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
"""By the precision of a run: how far its rounding may lead, see ``difference``."""
_USUAL, _FEW = 0.25, 3
"""Share of a tensor's entries that are smaller than its usual one; as many are in any case."""
_LEAST = 1e-30


def difference(
    found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float, least: float = _LEAST
) -> str:
    """In what answers differ, or an empty text.

    Args:
        found: the tensors of one answer.
        wanted: those of the other.
        tolerance: of floating and complex numbers, as a share of the number itself or of the
            usual size of its tensor's numbers, whichever is larger; others must be equal.
        least: what counts as the usual size if it is smaller: what numbers that cancel leave.
    """
    if len(found) != len(wanted):
        return f"{len(found)} outputs in place of {len(wanted)}"
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        reason = _different(one, other, tolerance, least)
        if reason:
            return reason if len(wanted) == 1 else f"output {number + 1}: {reason}"
    return ""


def _different(one: Tensor, other: Tensor, tolerance: float, least: float) -> str:
    if one.shape != other.shape:
        return f"a shape of {tuple(one.shape)} in place of {tuple(other.shape)}"
    if one.is_floating_point() != other.is_floating_point() or one.is_complex() != (
        other.is_complex()
    ):
        return f"{one.dtype} in place of {other.dtype}"
    if one.is_complex():
        one, other = (
            torch.view_as_real(one.resolve_conj()),
            torch.view_as_real(other.resolve_conj()),
        )
    if not one.numel():
        return ""
    if not one.is_floating_point():
        share = float((one != other).double().mean())
        return f"{share:.1%} of the values are others" if share else ""
    return _off(one.double(), other.double(), tolerance, least)


def _off(one: Tensor, other: Tensor, tolerance: float, least: float) -> str:
    """By how much floating numbers differ, where that is more than rounding."""
    finite = other.isfinite()
    same = (one == other) | (one.isnan() & other.isnan())
    if not bool((finite == one.isfinite()).all()) or not bool((finite | same).all()):
        return "values that are not finite in other places"
    if not bool(finite.any()):
        return "no value is finite, so that nothing can be compared"
    one, other, same = one[finite], other[finite], same[finite]
    if bool(same.all()):
        return ""
    allowed = other.abs().clamp_min(max(least, _usual(other, same)))
    off = float(((one - other).abs() / allowed).max())
    return f"{off:.1%} off" if not off <= tolerance else ""


def _usual(values: Tensor, same: Tensor) -> float:
    """The usual size of numbers, without those that stand there again and again in both.

    Args:
        values: finite, flat.
        same: which of them the other answer has as well, to the last bit.
    """
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    own = values[~same | (counts[which] == 1)].abs().sort().values
    return float(own[min(len(own) - 1, max(int(_USUAL * len(own)), _FEW))])

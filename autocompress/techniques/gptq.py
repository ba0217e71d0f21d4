"""Error compensation: columns are rounded in turn, the rest make up for what was lost."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.techniques.quantize import round_weight, weight_limit

_CLIPS = [1 - 0.05 * step for step in range(12)]


def clipped_peak(weight: Tensor, moments: Tensor, bits: int) -> Tensor:
    """Largest weight per row to keep, the rest clipped, so that rounding errs least on outputs.

    Args:
        weight: ``(outputs, d)``.
        moments: ``(d, d)`` second moments of the inputs.
        bits: 2 to 8; at 8 nothing is clipped.

    Returns:
        ``(outputs, 1)``, between 0.45 and 1 times the largest absolute weight.
    """
    peak = weight.abs().amax(1, keepdim=True).clamp_min(1e-12)
    if bits >= 8:
        return peak
    tried, errors = [peak * share for share in _CLIPS], []
    for top in tried:
        lost = weight - round_weight(weight.clamp(-top, top), bits)
        errors.append((lost @ moments * lost).sum(1))
    best = torch.stack(errors).argmin(0)
    return torch.stack(tried).gather(0, best[None, :, None])[0]


def gptq_round(
    weight: Tensor,
    moments: Tensor,
    bits: int,
    damping: float = 0.01,
    *,
    reduced: bool = False,
    zeros: Tensor | None = None,
) -> Tensor:
    """Round a matrix so that its outputs change little on inputs with these moments.

    Columns go in the order of their inputs' power. The largest weight of a row, clipped, always
    lands on the end of the grid, so that the result's own scale is the one it was rounded with.

    Args:
        weight: ``(outputs, d)``.
        moments: ``(d, d)`` second moments of the inputs.
        bits: 2 to 8, symmetric, one scale per row.
        damping: fraction of the mean diagonal.
        reduced: see ``weight_limit``.
        zeros: ``(outputs, d)``, weights that become zero; others make up for them.

    Returns:
        Rounded weights as floats, which ``round_weight`` leaves as they are.

    References:
        Frantar et al., GPTQ, ICLR 2023, algorithm 1.
    """
    limit = weight_limit(bits, reduced)
    peak = clipped_peak(weight, moments, bits)
    order = moments.diagonal().argsort(descending=True)
    hessian = moments.double()[order][:, order]
    index = torch.arange(len(hessian))
    dead = hessian.diagonal() <= 0
    hessian[index, index] += damping * hessian.diagonal().mean() + 1e-12
    hessian[dead, dead] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = weight.detach().double()[:, order]
    held = None if zeros is None else zeros[:, order]
    largest, ends = left.abs().argmax(1), left.sign() * limit
    scale = (peak / limit).double().flatten()
    levels = torch.zeros_like(left)
    for column in range(left.shape[1]):
        value = left[:, column]
        level = (value / scale).round().clamp(-limit, limit)
        level = torch.where(largest == column, ends[:, column], level)
        if held is not None:
            level = level.masked_fill(held[:, column], 0)
        levels[:, column] = level
        error = (value - level * scale) / factor[column, column]
        left[:, column:] -= error[:, None] * factor[column, column:][None]
    return (levels[:, order.argsort()] * (peak / limit)).to(weight.dtype)

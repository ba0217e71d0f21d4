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
    block: int = 0,
) -> Tensor:
    """Round a matrix so that its outputs change little on inputs with these moments.

    Columns go in the order of their inputs' power, block after block; a block's scales are chosen
    when its first column is reached. The largest weight of a row of a block, clipped, always lands
    on the end of the grid, so that the result's own scale is the one it was rounded with.

    Args:
        weight: ``(outputs, d)``.
        moments: ``(d, d)`` second moments of the inputs.
        bits: 2 to 8, symmetric.
        damping: fraction of the mean diagonal.
        reduced: see ``weight_limit``.
        zeros: ``(outputs, d)``, weights that become zero; others make up for them.
        block: so many columns, as they stand in the matrix, share a scale in each row; 0 is one
            scale per row.

    Returns:
        Rounded weights as floats, which ``round_weight`` leaves as they are. With blocks, a row
        that plain rounding serves better on these moments is rounded plainly.

    References:
        Frantar et al., GPTQ, ICLR 2023, algorithm 1.
    """
    limit = weight_limit(bits, reduced)
    groups = _groups(moments.diagonal(), block)
    order = torch.cat(groups)
    factor = _factor(moments, order, damping)
    left = weight.detach().double()[:, order]
    free = torch.ones_like(left) if zeros is None else (~zeros[:, order]).double()
    rounded = torch.zeros_like(left)
    begin = 0
    for group in groups:
        columns = slice(begin, begin + len(group))
        own, natural = group.sort()  # as they stand in the matrix
        now = left[:, columns] * free[:, columns]
        peak = clipped_peak(now[:, natural].to(weight.dtype), moments[own][:, own], bits)
        scale, ends = (peak / limit).flatten(), now.sign() * limit
        largest = begin + now.abs().argmax(1)
        for column in range(columns.start, columns.stop):
            value = left[:, column]
            level = (value / scale.double()).round().clamp(-limit, limit)
            level = torch.where(largest == column, ends[:, column - begin], level)
            rounded[:, column] = level * free[:, column] * scale
            error = (value - rounded[:, column]) / factor[column, column]
            left[:, column:] -= error[:, None] * factor[column, column:][None]
        begin = columns.stop
    found = rounded[:, order.argsort()].to(weight.dtype)
    return found if not block else _better(weight, moments, found, bits, reduced, zeros, block)


def _groups(power: Tensor, block: int) -> list[Tensor]:
    """Columns by the block that they lie in, the strongest first."""
    blocks = torch.arange(len(power)).split(block or len(power))
    strongest = sorted(blocks, key=lambda own: -float(power[own].sum()))
    return [own[power[own].argsort(descending=True)] for own in strongest]


def _factor(moments: Tensor, order: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped moments, columns in an order."""
    hessian = moments.double()[order][:, order]
    index = torch.arange(len(hessian))
    dead = hessian.diagonal() <= 0
    hessian[index, index] += damping * hessian.diagonal().mean() + 1e-12
    hessian[dead, dead] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def _better(
    weight: Tensor,
    moments: Tensor,
    found: Tensor,
    bits: int,
    reduced: bool,
    zeros: Tensor | None,
    block: int,
) -> Tensor:
    """Each row as it was found or rounded to nearest, whichever errs less."""
    start = weight.detach() if zeros is None else weight.detach().masked_fill(zeros, 0)
    nearest = round_weight(start, bits, reduced, block)
    errors = [((lost := weight.detach() - one) @ moments * lost).sum(1) for one in (found, nearest)]
    return torch.where((errors[0] <= errors[1])[:, None], found, nearest)

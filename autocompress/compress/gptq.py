"""Error compensation: columns are rounded in turn, the rest make up for what was lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.compressed import Compressed
from autocompress.compress.moments import input_moments, solvable
from autocompress.compress.quantize import weight_scale


def gptq_round(weight: Tensor, moments: Tensor, bits: int, damping: float = 0.01) -> Tensor:
    """Round a matrix so that its outputs change little on inputs with these moments.

    Args:
        weight: ``(outputs, d)``.
        moments: ``(d, d)`` second moments of the inputs.
        bits: 2 to 8, symmetric, one scale per row.
        damping: fraction of the mean diagonal.

    Returns:
        Rounded weights as floats, all on the grid of ``weight_scale(weight, bits)``.

    References:
        Frantar et al., GPTQ, ICLR 2023, algorithm 1.
    """
    limit = 2 ** (bits - 1) - 1
    scale = weight_scale(weight, bits).double().flatten()
    left = weight.detach().double().clone()
    hessian = moments.double().clone()
    index = torch.arange(len(hessian))
    dead = hessian.diagonal() <= 0
    hessian[index, index] += damping * hessian.diagonal().mean() + 1e-12
    hessian[dead, dead] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    out = torch.zeros_like(left)
    for column in range(left.shape[1]):
        value = left[:, column]
        rounded = (value / scale).round().clamp(-limit, limit) * scale
        out[:, column] = rounded
        error = (value - rounded) / factor[column, column]
        left[:, column:] -= error[:, None] * factor[column, column:][None]
    return out.to(weight.dtype)


@torch.no_grad()
def compensate(folded: nn.Module, compressed: Compressed, inputs: Any) -> None:
    """Round the weights of quantized layers in place, with compensation.

    Args:
        folded: batch norms folded; its weights land on their grids.
        compressed: says which layers are rounded, to how many bits.
        inputs: calibration inputs.
    """
    wanted = {
        n: p
        for n, p in compressed.precisions.items()
        if p.weight_bits <= 8 and solvable(folded.get_submodule(n))
    }
    moments = input_moments(folded, wanted, inputs, seed=compressed.settings.seed)
    for name, precision in wanted.items():
        layer = folded.get_submodule(name)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        second = moments[name].second
        rows = len(weight) // len(second)
        for group, matrix in enumerate(second):
            block = weight[group * rows : (group + 1) * rows]
            rounded = gptq_round(block.flatten(1), matrix[:-1, :-1], precision.weight_bits)
            block.copy_(rounded.view_as(block))

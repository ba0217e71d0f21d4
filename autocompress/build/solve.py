"""A layer's weights solved anew on the inputs that are left, for all layers that share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.model.tied import ParameterPath, holders
from autocompress.techniques.moments import (
    LEAST_DAMPING,
    MatrixLayer,
    Moments,
    matrix_layer,
    resolve,
    rows,
)

_NORM = nn.modules.batchnorm._BatchNorm
_ROWS = 262_144
_FEW = 50
"""Rows for each unknown of an output, above which they say all that there is to say."""
_HELD = 0.25
_RIDGES = 3

Solution = tuple[Tensor, Tensor | None]
"""Weight and bias."""


def solve_without(
    model: nn.Module,
    moments: Mapping[str, Moments],
    shared: Sequence[list[ParameterPath]],
    name: str,
    gone: Sequence[int],
    ridge: float,
) -> Solution:
    """Weights of a layer, all outputs, re-solved without some input channels (left at zero).

    A weight that several layers hold is solved once for the inputs of all of them, each layer's
    error counting alike; so each of them gets the same weight, and its own bias where it has one.

    Args:
        model: uncompressed.
        moments: of the layer, and of those that hold its weight.
        shared: as ``tied.shared_parameters`` gives it for the model.
        name: of the layer.
        gone: its input channels that go.
        ridge: fraction of the mean diagonal.
    """
    layer = matrix_layer(model, name)
    weight = layer.weight.detach()
    bias = layer.bias.detach() if layer.bias is not None else None
    together = holders(shared, name)
    if len(together) == 1 or holders(shared, name, "bias") == together:
        second = torch.stack([moments[n].second for n in together]).mean(0)
        return _solve(weight, bias, second, gone, ridge)
    found = torch.stack([_shifted(matrix_layer(model, n), moments[n].second) for n in together])
    solved, _ = _solve(weight, None, found.mean(0), gone, ridge)
    if bias is None:
        return solved, None
    # what the weight lost on the mean input goes into the bias
    means = moments[name].second[:, -1, :-1]
    lost = (weight - solved).flatten(1).unflatten(0, (len(means), -1))
    return solved, bias + (lost @ means[..., None]).flatten()


def _shifted(layer: MatrixLayer, second: Tensor) -> Tensor:
    """Moments as a layer's weight sees them whose own bias makes up for the mean."""
    if layer.bias is None:
        return second
    mean = second[:, -1]
    return second - mean[:, :, None] * mean[:, None, :]


def _solve(
    weight: Tensor, bias: Tensor | None, second: Tensor, gone: Sequence[int], ridge: float
) -> Solution:
    """Group after group of one weight; see ``resolve``."""
    groups = len(second)
    out = torch.zeros_like(weight)
    new_bias = None if bias is None else torch.zeros_like(bias)
    per_group, rows = weight.shape[1], len(weight) // groups
    area = weight[0, 0].numel()
    for g in range(groups):
        mask = torch.ones(per_group, dtype=torch.bool)
        mask[[i - g * per_group for i in gone if i // per_group == g]] = False
        block = slice(g * rows, (g + 1) * rows)
        kept = mask.repeat_interleave(area).nonzero().flatten()
        own = None if bias is None else bias[block]
        solved, shift = resolve(weight[block].flatten(1), own, second[g], kept, ridge)
        flat = out[block].flatten(1)
        flat[:, kept] = solved
        out[block] = flat.view_as(out[block])
        if new_bias is not None and shift is not None:
            new_bias[block] = shift
    return out, new_bias


def has_statistics(module: nn.Module) -> bool:
    """Whether a module is a batch norm that a solved map can be divided with.

    One without statistics of its own, or without a scale, is left as it is: the layer before it is
    solved for its own outputs.
    """
    return (
        isinstance(module, _NORM) and module.running_mean is not None and module.weight is not None
    )


def statistics(norm: _NORM) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a batch norm that keeps them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def place_before_norm(
    layer: MatrixLayer, norm: _NORM, weight: Tensor, bias: Tensor, gram: Tensor, damping: float
) -> None:
    """Split a solved affine map into a layer and the batch norm behind it, in place.

    The norm's statistics become those of the layer's true outputs, so that training mode sees the
    same function as eval mode.

    Args:
        layer, norm: changed in place.
        weight, bias: ``(outputs, d)`` and ``(outputs,)``, of both together.
        gram: ``(d + 1, d + 1)`` moments of the layer's ``[inputs, 1]``, damped.
        damping: what was added to their diagonal.
    """
    second, mean = gram[:-1, :-1].clone(), gram[-1, :-1]
    index = torch.arange(len(second))
    second[index, index] -= damping
    centre = weight @ mean
    variance = torch.einsum("od,de,oe->o", weight, second, weight) - centre**2
    spread = (variance.clamp_min(0) + norm.eps).sqrt()
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.zero_()
    running_mean, running_var = statistics(norm)
    running_mean.copy_(centre)
    running_var.copy_(variance.clamp_min(0))
    norm.weight.copy_(spread)
    norm.bias.copy_(bias + centre)


@dataclass(frozen=True)
class Equations:
    """The least squares of a layer's outputs, as means over rows, in double precision.

    Args:
        gram: ``(d + 1, d + 1)``, of ``[x, 1][x, 1]'``.
        cross: ``(d + 1, outputs)``, of ``[x, 1] t'``.
        held: the same two of a quarter of the samples, where rows are few; else ``None``.
        share: of the rows that these are.
    """

    gram: Tensor
    cross: Tensor
    held: tuple[Tensor, Tensor] | None = None
    share: float = 0.0

    def ridge(self, weight: Tensor, least: float) -> float:
        """The ridge that does best on samples which were held out, in steps of ten.

        Few rows fit whatever they are asked to: a classifier of 1,280 inputs that is solved on 400
        images is right about these, and wrong about all others.

        Args:
            weight: ``(outputs, d)``, toward which it draws.
            least: fraction of the mean diagonal to begin with, and all that is needed where rows
                are many.
        """
        if self.held is None:
            return least
        gram, cross = self.held
        rest = 1.0 - self.share
        fitted = (self.gram - self.share * gram) / rest, (self.cross - self.share * cross) / rest

        def error(ridge: float) -> float:
            own, right = fitted[0].clone(), fitted[1].clone()
            damp(own, right, weight, ridge)
            solved = solved_with(own, right, None)
            return float((solved * (gram @ solved - 2 * cross)).sum())

        found = least, error(least)
        for _ in range(_RIDGES):
            harder = 10 * found[0], error(10 * found[0])
            if harder[1] >= found[1]:
                break
            found = harder
        return found[0]


def accumulate(
    layer: MatrixLayer, fed: Sequence[Tensor], wanted: Sequence[Tensor]
) -> Equations | None:
    """What a layer's least squares are solved from.

    Args:
        layer: with one group.
        fed: its inputs, in chunks.
        wanted: what its outputs are to be, in chunks.

    Returns:
        ``None`` where inputs and outputs are not of the same rows, or there are none: the layer's
        inputs are chosen by values (an expert's), and other weights choose others.
    """
    generator = torch.Generator().manual_seed(0)
    whole, held = _Sums(), _Sums()
    for x, t in zip(fed, wanted, strict=True):
        found = rows(layer, x)[0]
        by_row = t if isinstance(layer, nn.Linear) else t.flatten(2).transpose(1, 2)
        goal = by_row.reshape(-1, by_row.shape[-1])
        if len(goal) != len(found):
            return None
        if not len(found):
            continue
        apart = int(len(x) * _HELD) * (len(found) // len(x))
        limit = max(_ROWS // len(fed), 8 * found.shape[1])
        if len(found) > limit:  # more than are ever few
            index = torch.randint(len(found), (limit,), generator=generator)
            found, goal, apart = found[index], goal[index], 0
        found = torch.cat([found, found.new_ones(len(found), 1)], 1)
        whole.add(found, goal)
        if apart and len(found) * len(fed) < _FEW * found.shape[1]:
            held.add(found[:apart], goal[:apart])
    if not whole.count:
        return None
    gram, cross = whole.means
    if not held.count or whole.count >= _FEW * len(gram):
        return Equations(gram, cross)
    return Equations(gram, cross, held.means, held.count / whole.count)


class _Sums:
    """Sums of outer products over rows."""

    def __init__(self) -> None:
        self.count = 0
        self.gram: Any = 0.0
        self.cross: Any = 0.0

    def add(self, x: Tensor, goal: Tensor) -> None:
        self.count += len(x)
        self.gram = (x.T @ x).double() + self.gram
        self.cross = (x.T @ goal).double() + self.cross

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Both, per row."""
        return self.gram / self.count, self.cross / self.count


def damp(gram: Tensor, cross: Tensor, weight: Tensor, ridge: float) -> float:
    """Add a ridge toward weights that are there, in place, and give what stands on the diagonal.

    Args:
        gram: ``(d + 1, d + 1)`` of ``[x, 1]``; the constant is left free.
        cross: ``(d + 1, outputs)``.
        weight: ``(outputs, d)``.
        ridge: fraction of the mean diagonal.
    """
    damping = max(float(ridge * gram.diagonal()[:-1].mean()), LEAST_DAMPING)
    index = torch.arange(weight.shape[1])
    gram[index, index] += damping
    cross[:-1] += damping * weight.T
    return damping


def refit(
    layer: MatrixLayer, equations: Equations, ridge: float, zeros: Tensor | None = None
) -> None:
    """Give a layer the weights, and the bias, of the least squares with a ridge, in place.

    Args:
        layer: with one group.
        equations: as ``accumulate`` gives them.
        ridge: fraction of the mean diagonal, toward the weights that are there; more where rows
            are few.
        zeros: ``(outputs, inputs)``, weights that stay zero.
    """
    gram, cross = equations.gram.clone(), equations.cross.clone()
    flat = layer.weight.flatten(1).double()
    damp(gram, cross, flat, equations.ridge(flat, ridge))
    if layer.bias is None:
        solved = solved_with(gram[:-1, :-1], cross[:-1], zeros)
    else:
        solved = solved_with(gram, cross, zeros)
        layer.bias.copy_(solved[-1])
        solved = solved[:-1]
    layer.weight.copy_(solved.T.reshape(layer.weight.shape))


def solved_with(gram: Tensor, right: Tensor, zeros: Tensor | None) -> Tensor:
    """Solve for all outputs at once, or for each on the weights that may be other than zero.

    Args:
        gram: ``(n, n)``; what comes after the weights' inputs (a constant) is free.
        right: ``(n, outputs)``.
        zeros: ``(outputs, inputs)``, weights that stay zero.
    """
    if zeros is None:
        lower, failed = torch.linalg.cholesky_ex(gram)
        return torch.linalg.solve(gram, right) if failed else torch.cholesky_solve(right, lower)
    found = torch.zeros_like(right)
    for i, row in enumerate(zeros):
        free = torch.ones(len(gram), dtype=torch.bool)
        free[: len(row)] = ~row
        found[free, i] = torch.linalg.solve(gram[free][:, free], right[free, i])
    return found

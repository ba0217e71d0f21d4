"""Shapes of a factorized layer: which factors, of which ranks, in which order."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from autocompress.model.part import Part, whole
from autocompress.policy.inventory import LayerSpec

if TYPE_CHECKING:
    from autocompress.policy.policy import LayerPolicy

NAME = "low-rank"
"""Of the technique."""


def break_even_rank(layer: LayerSpec, inputs: int, outputs: int, method: str) -> float:
    """Rank at which the factorized layer has as many multiply-adds as the dense one.

    Picking rows costs none: a table's factors have as many weights at this rank as the table,
    all layers that hold it together.

    Args:
        layer: a convolution with one group, a linear layer, or an embedding.
        inputs, outputs: channels after pruning.
        method: ``svd`` (a k x k layer with r outputs, then 1x1), ``spatial`` (k x 1, then 1 x k)
            or ``tucker2`` (1x1, k x k, 1x1; inner ranks are this share of both sides).
    """
    kernel = math.prod(layer.kernel_size)
    dense = inputs * outputs * kernel
    if method == "spatial" and len(layer.kernel_size) == 2:
        height, width = layer.kernel_size
        stretch = layer.stride[1]  # the first part runs before the columns are strided away
        return dense / (inputs * height * stretch + outputs * width)
    if method == "tucker2":
        # a r i s^2 + k a b i o + b o with a = b = t, solved for the share t of both sides
        stretch = math.prod(layer.stride)
        a, b = inputs * outputs * kernel, inputs * inputs * stretch + outputs * outputs
        share = (-b + math.sqrt(b * b + 4 * a * dense)) / (2 * a)
        return share * outputs
    if layer.holders > 1:
        rows, width = (inputs, outputs) if layer.kind == "embedding" else (outputs, inputs)
        return dense / (rows + layer.holders * width)
    return dense / (inputs * kernel + outputs)


def factor_method(layer: LayerSpec, policy: LayerPolicy) -> str:
    """Which factors a layer gets: ``auto`` is looked up, nothing is compared here."""
    if not has_methods(layer):
        return "svd"
    if policy.factorization == "auto":
        assert policy.rank_ratio is not None
        return layer.best_factors(policy.rank_ratio)
    return policy.factorization or "svd"


def has_methods(layer: LayerSpec) -> bool:
    """Whether there is more than SVD to choose from: a plain layer's 2d kernel larger than 1x1."""
    known = layer.plain and not layer.why_not(NAME)
    return known and len(layer.kernel_size) == 2 and math.prod(layer.kernel_size) > 1


def factor_ranks(
    layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int
) -> tuple[int, ...]:
    """Inner widths of a factorized layer, each at least 1."""
    assert policy.rank_ratio is not None
    method = factor_method(layer, policy)
    edge = break_even_rank(layer, inputs, outputs, method)
    if method == "tucker2":
        share, area = policy.rank_ratio * edge / outputs, math.prod(layer.kernel_size)
        before, after = max(1, int(share * inputs)), max(1, int(share * outputs))
        # a core has no higher rank than its other side allows, with few input channels say
        return min(before, after * area), min(after, before * area)
    return (max(1, int(policy.rank_ratio * edge)),)


def factor_parts(
    layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int
) -> tuple[Part, ...]:
    """The modules that run in a factorized layer's place, in their order.

    Args:
        layer: a convolution with one group, a linear layer, or an embedding.
        policy: ``rank_ratio`` and ``factorization`` are read.
        inputs, outputs: channels after pruning.
    """
    ranks = factor_ranks(layer, policy, inputs, outputs)
    method = factor_method(layer, policy)
    full = whole(layer, inputs, outputs)
    ones = (1,) * len(layer.kernel_size)
    last = replace(full, inputs=ranks[-1], kernel_size=ones, stride=ones)
    if method == "spatial":
        (height, width), (down, right) = layer.kernel_size, full.stride
        return (
            replace(
                full,
                outputs=ranks[0],
                kernel_size=(height, 1),
                stride=(down, 1),
                positions=_positions_before(layer, axes=(1,)),
            ),
            replace(last, kernel_size=(1, width), stride=(1, right)),
        )
    if method == "tucker2":
        before = _positions_before(layer, axes=(0, 1))
        return (
            replace(full, outputs=ranks[0], kernel_size=ones, stride=ones, positions=before),
            replace(full, inputs=ranks[0], outputs=ranks[1]),
            last,
        )
    if layer.kind == "embedding":
        return replace(full, outputs=ranks[0]), replace(last, kind="linear")
    return replace(full, outputs=ranks[0]), last


def _positions_before(layer: LayerSpec, axes: tuple[int, ...]) -> int:
    """Positions that the first factor computes: along these axes as many as the input has."""
    if not layer.sizes:
        return layer.positions * math.prod(layer.stride[axis] for axis in axes)
    return sum(
        math.prod(entry[axis] if axis in axes else left[axis] for axis in range(len(left)))
        for entry, left in layer.sizes
    )

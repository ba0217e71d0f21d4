"""Narrower heads: each head's products of two projections at a lower rank, jointly.

A head's scores are ``x' Wq' Wk y``, and what it adds to the stream is ``Wo Wv y``: products of two
matrices, of which the best ones of lower rank are known in closed form where the errors are
weighted by the second moment of what the projections read. A constant beside the inputs takes the
biases in.

References:
    Eckart and Young, Psychometrika 1936; Yuan et al., ASVD, arXiv:2312.05821, and Wang et al.,
    SVD-LLM, ICLR 2025 (weighted by the inputs' moments); for pairs of projections, Lin et al.,
    MoDeGPT, ICLR 2025, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.model.widths import Narrowing, WeightRows

Seen = Callable[[str], Tensor | None]
"""Name of what reads inputs to their second moments, a constant behind them; see ``sees``."""

_SMALLEST = 1e-12
"""Of the largest singular value; directions below it are nothing."""


@dataclass(frozen=True)
class Turn:
    """Mixings ``(width, width)`` of one head's channels, those that matter most first."""

    query: Tensor
    key: Tensor
    value: Tensor
    reader: Tensor


def sees(rows: WeightRows, kind: str) -> str:
    """Name of the module whose inputs some rows are multiplied with, in an opened model.

    Args:
        rows: of a projection.
        kind: ``query``, ``key`` or ``value``.
    """
    return f"{rows.module}.takes_{kind}" if rows.prefix else rows.module


def joint_bases(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Mixings of the inner channels of a product, so that its first ones make the best low rank.

    With ``left @ right = U S V'``, ``left @ first.T = U S^1/2`` and ``second @ right = S^1/2 V'``.

    Args:
        left, right: ``(m, d)`` and ``(d, n)``.

    Returns:
        Two of ``(d, d)``, for the columns of the left and the rows of the right.
    """
    upper, lower = torch.linalg.qr(left)[1], torch.linalg.qr(right.T)[1]
    u, s, vh = torch.linalg.svd(_square(upper) @ _square(lower).T)
    scale = torch.where(s > _SMALLEST * s[0].clamp_min(1e-300), s.clamp_min(1e-300) ** -0.5, 0)
    return scale[:, None] * (vh @ _square(lower)), scale[:, None] * (u.T @ _square(upper))


def _square(triangle: Tensor) -> Tensor:
    """A factor of fewer rows than columns, with zeros below."""
    missing = triangle.shape[1] - triangle.shape[0]
    return nn.functional.pad(triangle, (0, 0, 0, missing)) if missing else triangle


def turns(model: nn.Module, narrowing: Narrowing, seen: Seen) -> list[Turn]:
    """How to turn every head of a group, so that its last channels matter least.

    Args:
        model: uncompressed.
        narrowing: of its heads.
        seen: second moments ``(d + 1, d + 1)`` of what projections read; ``None`` counts all
            directions alike.
    """
    roots: dict[str, Tensor | None] = {}

    def weighted(rows: WeightRows, kind: str) -> Tensor:
        name = sees(rows, kind)
        if name not in roots:
            roots[name] = _root(seen(name))
        root, found = roots[name], rows.read(model)
        return found if root is None else found @ root

    found = []
    for head in narrowing.heads:
        query, key = joint_bases(weighted(head.query, "query").T, weighted(head.key, "key"))
        reader, value = joint_bases(head.read(model), weighted(head.value, "value"))
        found.append(Turn(query, key, value, reader))
    return found


def _root(moments: Tensor | None) -> Tensor | None:
    """A square root of second moments, ``C = R R'``."""
    if moments is None:
        return None
    values, vectors = torch.linalg.eigh(moments.double())
    return vectors * values.clamp_min(0).sqrt()


def turn(model: nn.Module, narrowing: Narrowing, found: list[Turn], width: int) -> None:
    """Turn the heads of a group that is about to keep its first channels; scores stay as large.

    Args:
        model: changed in place.
        narrowing: of its heads.
        found: as ``turns`` gives them.
        width: channels that each head will keep.
    """
    for head, own in zip(narrowing.heads, found, strict=True):
        head.query.mix(model, own.query)
        head.key.mix(model, own.key)
        head.value.mix(model, own.value)
        head.mix_reader(model, own.reader)
    narrowing.keep_scale(model, width)

"""Tables of rows in low rank: a smaller table, and a linear layer that makes rows of its rows.

To pick a row is to multiply the table with a vector that is 1 in one place, whose second moments
are the shares of the rows in what is read. So the best factors are those of ``output_svd``. Where
linear layers hold the table too (a language model's output), the smaller table is theirs as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.model.splitting import plain_linear, with_rows
from autocompress.policy.inventory import LayerSpec
from autocompress.policy.policy import LayerPolicy
from autocompress.techniques.factorize import Factors
from autocompress.techniques.factors import factor_ranks

_CHUNK = 1 << 13
"""Rows that are held in double precision at once."""


def smoothed(counts: Tensor) -> Tensor:
    """The share of each row in what is read, those included that were never seen.

    All rows never seen together get the share that a next one of them is expected to have: as many
    as were seen once, of all reads (Good and Turing), and at least one.

    Args:
        counts: ``(rows,)``, how often each row was read; at least one was.

    Returns:
        ``(rows,)`` in double precision, which sums up to 1.

    References:
        Good, The Population Frequencies of Species, Biometrika 1953, eq. 9.
    """
    counts = counts.double()
    unseen = counts == 0
    reads, once = counts.sum(), (counts == 1).sum().clamp(min=1)
    if not unseen.any():
        return counts / reads
    mass = once / (reads + 1)
    return torch.where(unseen, mass / unseen.sum(), counts / reads * (1 - mass))


def table_factors(
    table: Tensor,
    rank: int,
    shares: Tensor | None = None,
    moments: Sequence[Tensor | None] = (None,),
) -> tuple[Tensor, Tensor]:
    """The best smaller table of some rank, and the map from its rows to those of the table.

    ``argmin sum_v p_v |E_v - A_v D|^2`` is ``A = E B, D = B'`` with B the leading eigenvectors of
    ``sum_v p_v E_v E_v'``. A linear layer that holds E sees inputs h: its outputs for row v err by
    ``p_v E|(E_v - A_v D) h|^2``, where rows that occur more often count for more. Each holder's
    error counts relative to what it gives, and the sum of them has its least in closed form.

    Args:
        table: E, ``(rows, d)``.
        rank: r.
        shares: p, ``(rows,)``; ``None`` weights all rows alike.
        moments: for each holder, ``(d, d)`` second moments of what it multiplies with the table;
            ``None`` for one that picks rows, and for one whose inputs are not known.

    Returns:
        A ``(rows, r)`` and D ``(r, d)``.
    """
    width = table.shape[1]
    spread = torch.zeros(width, width, dtype=torch.float64)
    weights = torch.ones(len(table), dtype=torch.float64) if shares is None else shares.double()
    for rows, share in zip(table.detach().split(_CHUNK), weights.split(_CHUNK), strict=True):
        spread += rows.double().T @ (rows.double() * share[:, None])
    seen = torch.zeros_like(spread)
    for second in moments:
        own = torch.eye(width, dtype=torch.float64) if second is None else second.double()
        seen += own / (own * spread).sum().clamp(min=torch.finfo(torch.float64).tiny)
    seen *= width / seen.trace()
    seen.diagonal().add_(1e-9)
    root = torch.linalg.cholesky(seen)
    _, vectors = torch.linalg.eigh(root.T @ spread @ root)
    leading = vectors.flip(1)[:, :rank]
    into = (root @ leading).to(table.dtype)
    back = torch.linalg.solve_triangular(root.T, leading, upper=True).T.to(table.dtype)
    return table.detach() @ into, back


def factorize_tables(
    layers: Mapping[str, nn.Module],
    spec: LayerSpec,
    policy: LayerPolicy,
    shares: Tensor | None,
    moments: Sequence[Tensor | None],
) -> nn.Sequential:
    """Factors of a table for all layers that hold it; the smaller table is one parameter.

    Args:
        layers: name to layer, the first one is the embedding of ``spec``; not changed.
        spec: of the first in the uncompressed model.
        policy: ``rank_ratio`` is read.
        shares, moments: see ``table_factors``; moments in the order of the layers.

    Returns:
        ``Factors`` in the order of the layers.
    """
    first = next(iter(layers.values()))
    assert isinstance(first.weight, nn.Parameter)
    rows, width = first.weight.shape
    (rank,) = factor_ranks(spec, policy, rows, width)
    small, back = table_factors(first.weight, rank, shares, moments)
    held = nn.Parameter(small, first.weight.requires_grad)
    made = []
    for layer in layers.values():
        if isinstance(layer, nn.Linear):
            last = plain_linear(small, layer.bias)
            last.weight = held
            made.append(Factors(plain_linear(back, None), last))
            continue
        table = with_rows(layer, small)
        table.weight = held
        made.append(Factors(table, plain_linear(back.T, None)))
        made[-1].train(layer.training)
    return nn.Sequential(*made)

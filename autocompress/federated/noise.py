"""Sums that hide single samples: each sample's share is bounded, and noise covers it.

Every client adds its own noise before it sends, at least as much as its own study asks for, and
tells such sums once (``own_rules``). The second moments of all layers together are covered and
nothing else: later rounds (screening, batch norms, means, ranges, metrics, weights) are sums
without noise, so that for those the server must be trusted with what it asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def noise_factor(epsilon: float, delta: float) -> float:
    """Standard deviation of Gaussian noise for a sensitivity of 1; exact for any epsilon.

    Args:
        epsilon, delta: of differential privacy, both above 0.

    References:
        Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy, ICML 2018,
        theorem 8.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    def excess(log_sigma: float) -> float:
        sigma = math.exp(log_sigma)
        near, far = 0.5 / sigma - epsilon * sigma, -0.5 / sigma - epsilon * sigma
        return float(ndtr(near) - math.exp(min(700.0, epsilon + float(log_ndtr(far)))) - delta)

    return math.exp(brentq(excess, math.log(1e-4), math.log(1e8)))


def clipped(limit: float) -> Callable[[Tensor, int], Tensor]:
    """Scales the rows of a sample so that what it adds to second moments stays within a limit.

    The outer products of a sample's rows ``[row, 1]`` have a Frobenius norm of at most the sum of
    the rows' squares.

    Args:
        limit: of that sum, above the number of a sample's rows.
    """

    def scaled(rows: Tensor, samples: int) -> Tensor:
        each = rows.view(len(rows), samples, -1, rows.shape[-1])
        squares = (each.double() ** 2).sum((0, 2, 3))
        room = limit - each.shape[0] * each.shape[2]
        factor = (max(room, 0.0) / squares.clamp(min=1e-12)).sqrt().clamp(max=1.0)
        return (each * factor.to(each.dtype)[None, :, None, None]).view_as(rows)

    return scaled


def noisy(
    sums: Mapping[str, NDArray[Any]], clip: Mapping[str, float], factor: float
) -> dict[str, NDArray[Any]]:
    """Triangles of second moments with noise.

    Args:
        sums: ``moments.`` and a layer's name to its triangles.
        clip: layer to the limit of one sample's share.
        factor: see ``noise_factor``; the sensitivity of all layers together, each in units of its
            limit, is the square root of their number.
    """
    draw = np.random.default_rng()  # of the system's entropy: a known seed would undo it
    spread = factor * math.sqrt(len(sums))
    return {
        name: array + spread * clip[name.removeprefix("moments.")] * draw.normal(size=array.shape)
        for name, array in sums.items()
    }


def positive(second: Tensor) -> Tensor:
    """The nearest matrices ``(groups, n, n)`` without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(second)
    found: Tensor = (vectors * values.clamp(min=0)[:, None, :]) @ vectors.transpose(1, 2)
    return found

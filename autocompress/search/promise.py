"""What a screened proposal promises: the hypervolume that it is expected to add to the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.results.front import ParetoFront, dominated_volume
from autocompress.results.metric import Metric

_NODES = ((-math.sqrt(3.0), 1 / 6), (0.0, 2 / 3), (math.sqrt(3.0), 1 / 6))
"""Gauss-Hermite: three points and weights of a standard normal distribution."""


_ANCHOR = 1e6
"""Weight of the uncompressed model, which the staircase goes through."""


class AccuracyForecast:
    """Accuracy of a policy from the KL divergence that it was screened at.

    A falling staircase through what was seen (isotonic regression, Barlow et al. 1972), straight
    lines between its steps; at no divergence it stands at the uncompressed accuracy.

    Args:
        seen: pairs of divergence, in nats, and accuracy.
        baseline: accuracy of the uncompressed model.
        noise: standard error of an accuracy, the least that a forecast is uncertain by.
    """

    def __init__(self, seen: Sequence[tuple[float, float]], baseline: float, noise: float) -> None:
        from scipy.optimize import isotonic_regression

        pairs = sorted(seen)
        self._kl = np.array([0.0, *(kl for kl, _ in pairs)])
        accuracy = np.array([baseline, *(a for _, a in pairs)])
        weights = np.array([_ANCHOR, *([1.0] * len(pairs))])
        self._accuracy = isotonic_regression(accuracy, weights=weights, increasing=False).x
        left = accuracy[1:] - self._accuracy[1:]
        rms = float(np.sqrt(np.mean(left**2))) if len(left) else 0.0
        self.sigma = max(noise, rms)

    def __call__(self, kl: float) -> float:
        """The accuracy to expect."""
        return float(np.interp(kl, self._kl, self._accuracy))


def expected_gain(
    front: ParetoFront,
    reference: Sequence[float],
    accuracy: float,
    sigma: float,
    costs: Mapping[str, float],
) -> float:
    """Expected hypervolume improvement of a policy of uncertain accuracy and known costs.

    Args:
        front: what is there.
        reference: as for ``ParetoFront.hypervolume``.
        accuracy, sigma: mean and standard deviation of the first objective.
        costs: the other objectives by name.

    References:
        Emmerich, Giannakoglou and Naujoks, Single- and Multiobjective Evolutionary Optimization
        Assisted by Gaussian Random Field Metamodels, IEEE Trans. Evol. Comput. 10 (2006).
    """
    known = front.losses
    limit = _losses(front.objectives, reference)
    before = dominated_volume(known, limit)
    rest = [costs[m.name] for m in front.objectives[1:]]
    total = 0.0
    for node, weight in _NODES:
        point = _losses(front.objectives, [accuracy + node * sigma, *rest])
        both = np.concatenate([known, point[None]]) if len(known) else point[None]
        total += weight * (dominated_volume(both, limit) - before)
    return total


def _losses(objectives: Sequence[Metric], values: Sequence[float]) -> NDArray[np.float64]:
    return np.array([m.loss(v) for m, v in zip(objectives, values, strict=True)])

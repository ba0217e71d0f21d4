"""Expected improvement: the hypervolume that a screened proposal should add to the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autocompress.results.front import ParetoFront, as_losses, dominated_volume
from autocompress.results.metric import Goal

_POINTS = 9
"""Of the Gauss-Hermite rule over a normal distribution."""
_ANCHOR = 1e6
"""Weight of the uncompressed model, which the staircase goes through."""


class QualityForecast:
    """Quality of a policy from the divergence that it was screened at.

    A staircase that only gets worse, through what was seen (isotonic regression, Barlow et al.
    1972), straight lines between its steps; at no divergence it stands at the uncompressed quality.

    Args:
        seen: pairs of divergence, in nats, and quality.
        baseline: quality of the uncompressed model.
        noise: standard error of a quality, the least that a forecast is uncertain by.
        goal: whether more or less of the quality is better.
    """

    def __init__(
        self,
        seen: Sequence[tuple[float, float]],
        baseline: float,
        noise: float,
        goal: Goal = "maximize",
    ) -> None:
        from scipy.optimize import isotonic_regression

        pairs = sorted(seen)
        self._kl = np.array([0.0, *(kl for kl, _ in pairs)])
        quality = np.array([baseline, *(q for _, q in pairs)])
        weights = np.array([_ANCHOR, *([1.0] * len(pairs))])
        self._quality = isotonic_regression(
            quality, weights=weights, increasing=goal == "minimize"
        ).x
        left = quality[1:] - self._quality[1:]
        rms = float(np.sqrt(np.mean(left**2))) if len(left) else 0.0
        self.sigma = max(noise, rms)

    def __call__(self, kl: float) -> float:
        """The quality to expect."""
        return float(np.interp(kl, self._kl, self._quality))


def expected_improvement(
    front: ParetoFront,
    reference: Sequence[float],
    quality: float,
    sigma: float,
    costs: Mapping[str, float],
) -> float:
    """Expected hypervolume improvement of a policy of uncertain quality and known costs.

    Args:
        front: what is there.
        reference: as for ``ParetoFront.hypervolume``.
        quality, sigma: mean and standard deviation of the first objective.
        costs: the other objectives by name.

    References:
        Emmerich, Giannakoglou and Naujoks, Single- and Multiobjective Evolutionary Optimization
        Assisted by Gaussian Random Field Metamodels, IEEE Trans. Evol. Comput. 10 (2006).
    """
    from numpy.polynomial.hermite_e import hermegauss

    known = front.losses
    limit = as_losses(reference, front.objectives)
    before = dominated_volume(known, limit)
    rest = [costs[m.name] for m in front.objectives[1:]]
    nodes, weights = hermegauss(_POINTS)
    total = 0.0
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        point = as_losses([quality + node * sigma, *rest], front.objectives)
        total += weight * (dominated_volume(np.concatenate([known, point[None]]), limit) - before)
    return float(total)

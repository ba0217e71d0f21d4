"""Linear heads on features inside a network, in closed form: nothing is trained.

A head is fitted to what the network itself answers, by ridge regression from second moments, so
that it needs inputs and no labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress.cascade.confidence import Floats

RIDGE = 1e-4
"""Added to the features' covariance, as a share of its mean diagonal."""


@dataclass(frozen=True)
class LinearHead:
    """From features to outputs: ``features @ weight + bias``.

    Args:
        weight: ``(features, outputs)``.
        bias: ``(outputs,)``.
    """

    weight: Floats
    bias: Floats


class HeadMoments:
    """Sums over inputs that a head is solved from.

    Args:
        features: numbers of one input.
        outputs: of the head.
    """

    def __init__(self, features: int, outputs: int) -> None:
        self._count = 0
        self._features, self._outputs = np.zeros(features), np.zeros(outputs)
        self._second = np.zeros((features, features))
        self._cross = np.zeros((features, outputs))

    def add(self, features: Floats, outputs: Floats) -> None:
        """Take a batch in: ``(N, features)`` and ``(N, outputs)``."""
        features, outputs = np.asarray(features, float), np.asarray(outputs, float)
        self._count += len(features)
        self._features += features.sum(axis=0)
        self._outputs += outputs.sum(axis=0)
        self._second += features.T @ features
        self._cross += features.T @ outputs

    def head(self, ridge: float = RIDGE) -> LinearHead:
        """The head with the least squared error, its weights held small.

        Args:
            ridge: see ``RIDGE``; the bias is not held.

        Raises:
            ValueError: nothing was added.

        References:
            Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems,
            Technometrics 12 (1970), eq. 2.1.
        """
        if not self._count:
            raise ValueError("no inputs were added")
        middle, wanted = self._features / self._count, self._outputs / self._count
        covariance = self._second / self._count - np.outer(middle, middle)
        cross = self._cross / self._count - np.outer(middle, wanted)
        held = ridge * float(np.trace(covariance)) / len(covariance)
        # features that never change need some hold at any ridge
        held = max(held, float(np.finfo(float).tiny))
        solved = np.linalg.solve(covariance + held * np.eye(len(covariance)), cross)
        weight = np.asarray(solved, np.float64)
        return LinearHead(weight, wanted - middle @ weight)

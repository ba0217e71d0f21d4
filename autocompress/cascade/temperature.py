"""The temperature at which a classifier's probabilities are what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from autocompress.cascade.confidence import Floats

_RANGE = (-4.0, 4.0)
"""Of the temperature's logarithm."""


def fit_temperature(logits: Floats, targets: NDArray[Any]) -> float:
    """The temperature with the least negative log-likelihood, between 0.018 and 55.

    Args:
        logits: ``(N, classes)``.
        targets: class of each sample, ``(N,)``.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    wanted = logits[np.arange(len(logits)), targets]

    def loss(inverse_log: float) -> float:
        scale = np.exp(-inverse_log)
        return float(np.mean(logsumexp(scale * logits, axis=1) - scale * wanted))

    found = minimize_scalar(loss, bounds=_RANGE, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))

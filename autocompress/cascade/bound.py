"""What can be said of inputs that were not seen, from counts on those that were.

An input is a *loss* where the uncompressed model is right and the cascade is wrong, and a *gain*
where it is the other way round. The rate of losses less that of gains is what the cascade loses of
the accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autocompress.cascade.confidence import Floats

_NUISANCE = 0.001
"""Of the error, what the interval of the rate of gains may cost."""
_GRID = 33
"""Rates of gains in that interval that are tried."""


def clopper_pearson(hits: int, count: int, level: float) -> tuple[float, float]:
    """Interval of a rate that holds with probability ``level`` at least.

    References:
        Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of
        the binomial, Biometrika 26 (1934).
    """
    from scipy.stats import beta  # which takes a second to load

    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high


def score(losses: Floats, gains: Floats, count: int, allowed: float) -> Floats:
    """By how much fewer accuracy is lost than is allowed, in about one standard error.

    Args:
        losses, gains: counts, of any shape.
        count: inputs.
        allowed: loss of accuracy, a fraction of 1.
    """
    # one more, so that a few inputs without any difference do not prove everything
    return np.asarray((allowed * count - (losses - gains)) / np.sqrt(losses + gains + 1))


def loss_p_value(losses: int, gains: int, count: int, allowed: float) -> float:
    """How likely counts as good as these are, if the accuracy lost is ``allowed`` or more.

    An exact test that a cascade is no worse than is allowed, on pairs of right and wrong: the
    probability of all counts whose ``score`` is as high, at the rate of gains (a nuisance) that
    makes it most likely, within an interval that this rate leaves with probability 0.001, which is
    added. At most ``alpha`` with probability ``alpha``, whatever the rates are.

    Args:
        losses, gains: counts among ``count`` inputs.
        count: inputs, drawn independently.
        allowed: loss of accuracy, a fraction of 1.

    References:
        Hsueh, Liu and Chen, Unconditional exact tests for equivalence or noninferiority for paired
        binary endpoints, Biometrics 57 (2001); Berger and Boos, P values maximized over a
        confidence set for the nuisance parameter, JASA 89 (1994).
    """
    from scipy.stats import binom

    low, high = clopper_pearson(gains, count, 1 - _NUISANCE)
    rates = np.linspace(low, min(high, (1 - allowed) / 2), _GRID)[:, None]
    if rates[-1] < low:
        return 1.0  # so many gains leave no room for more losses
    most = int(binom.ppf(1 - 1e-9, count, float(rates[-1, 0])))
    other = np.arange(most + 1)[None, :]
    reached = float(score(np.asarray(losses, float), np.asarray(gains, float), count, allowed))
    # most losses that score as high beside so many gains: a quadratic in sqrt(losses + gains + 1)
    room = allowed * count + 2 * other + 1
    root = np.sqrt(np.maximum(reached**2 + 4 * room, 0.0)) - reached
    fitting = np.floor(np.where(root > 0, root, 0.0) ** 2 / 4 - other - 1 + 1e-9)
    losing = np.clip((rates + allowed) / np.maximum(1 - rates, 1e-12), 0.0, 1.0)
    below = binom.cdf(fitting, count - other, losing)
    found = np.sum(binom.pmf(other, count, rates) * below, axis=1).max()
    return float(min(1.0, found + _NUISANCE + 1e-9))


def largest_loss(losses: int, gains: int, count: int, alpha: float = 0.05) -> float:
    """The loss of accuracy that is not exceeded, with probability ``1 - alpha``; see above."""
    low, high = -1.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if loss_p_value(losses, gains, count, middle) <= alpha:
            high = middle
        else:
            low = middle
    return high


def inputs_needed(allowed: float, alpha: float = 0.05) -> int:
    """The fewest inputs that can show a loss of at most ``allowed``, if none is answered worse."""
    if allowed <= 0:
        raise ValueError("no number of inputs shows that nothing at all is lost")
    count = math.ceil(math.log(alpha - _NUISANCE) / math.log1p(-allowed))
    while loss_p_value(0, 0, count, allowed) > alpha:
        count += max(1, count // 200)
    return count


def latency_p_value(
    handed: Sequence[int], count: int, stages_ms: Sequence[float], most_ms: float
) -> float:
    """How likely as few inputs handed on are, if the mean latency is above ``most_ms``.

    Args:
        handed: inputs that reach each stage but the first.
        count: inputs, drawn independently.
        stages_ms: latency that each stage adds; the first is spent on every input.
        most_ms: mean latency that is not to be exceeded.

    The shares handed on are bounded one by one (Clopper and Pearson), which may fail together as
    often as asked (Bonferroni).
    """
    spare = most_ms - stages_ms[0]
    if spare < 0:
        return 1.0

    def mean(alpha: float) -> float:
        level = 1 - 2 * alpha / len(handed)
        bounds = (clopper_pearson(h, count, level)[1] for h in handed)
        return sum(b * ms for b, ms in zip(bounds, stages_ms[1:], strict=True))

    low, high = 0.0, 0.5
    if mean(high) > spare:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) <= spare else (middle, high)
    return high

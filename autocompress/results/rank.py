"""Whether one way of scoring puts things into the order in which another does."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation of pairs of scores.

    Returns:
        Between -1 and 1; ``None`` for fewer than three pairs, or where one side is constant.
    """
    if len(pairs) < 3:
        return None
    from scipy.stats import spearmanr

    first, second = zip(*pairs, strict=True)
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    found = float(spearmanr(first, second).statistic)
    return found if math.isfinite(found) else None

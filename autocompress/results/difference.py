"""How far apart two qualities are, on the same samples wherever both records hold each one."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autocompress.results.metric import ACCURACY, Measurement, Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: in a measurement's context: which samples were answered rightly
HITS = "hits"
#: in a measurement's context: a score of each of the first samples, where nothing is right or wrong
SCORES = "scores"

_KEPT = 2000
"""Scores that a record keeps, 11 kB of text: enough to tell how much differences vary."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Quality of the first less that of the second, as people read it.

    Args:
        points: in points of a fraction, else in the metric's unit.
        stderr: its standard error, likewise.
        paired: whether it comes from the same samples one by one; if not, the two are taken as
            independent, which makes the error too large.
        metric: that was compared.
    """

    points: float
    stderr: float
    paired: bool
    metric: Metric = ACCURACY

    @property
    def gain(self) -> float:
        """By how much the first is better, whichever way the metric runs."""
        return self.points if self.metric.goal == "maximize" else -self.points

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.points - 1.96 * self.stderr

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.points + 1.96 * self.stderr

    def __str__(self) -> str:
        return self.metric.gap(self.points, self.stderr)


def difference(first: Measurement, second: Measurement) -> Difference:
    """Compare two qualities.

    With ``b`` of ``n`` samples that only the first gets right and ``c`` that only the second does,
    the difference is ``(b - c) / n`` and its variance ``(b + c - (b - c)^2 / n) / n^2``. Where each
    sample has a score instead, the variance is that of the scores' differences, over ``n``.

    References:
        Agresti, Categorical Data Analysis, section on matched pairs (Wald interval).
    """
    metric = first.quality
    scale = metric.shown(1.0)
    points = scale * (first.score - second.score)
    variance = _paired_variance(first, second)
    if variance is None:
        return Difference(
            points, scale * math.hypot(first.score_error, second.score_error), False, metric
        )
    return Difference(points, scale * math.sqrt(variance), True, metric)


def _paired_variance(first: Measurement, second: Measurement) -> float | None:
    """Of the difference, from the same samples one by one; ``None`` where records hold none."""
    if first.context.get("split") != second.context.get("split"):
        return None
    mine, theirs = hits_of(first), hits_of(second)
    if mine is not None and theirs is not None:
        if len(mine) != len(theirs):
            return None
        gain, loss = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
        return (gain + loss - (gain - loss) ** 2 / len(mine)) / len(mine) ** 2
    mine, theirs = _scores(first), _scores(second)
    count = first.context.get("images")
    if mine is None or theirs is None or len(mine) != len(theirs) or not count:
        return None
    if count != second.context.get("images"):
        return None
    return float((mine - theirs).var()) / int(count)


def pack_hits(correct: NDArray[np.bool_]) -> str:
    """``(N,)`` booleans as a text of N / 6 characters."""
    import numpy as np

    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def pack_scores(scores: NDArray[np.float64]) -> str:
    """The first of ``(N,)`` scores as a text, in single precision."""
    import numpy as np

    return base64.b64encode(scores[:_KEPT].astype(np.float32).tobytes()).decode()


def hits_of(measurement: Measurement) -> NDArray[np.bool_] | None:
    """Which samples were answered rightly, ``(N,)``; ``None`` where the record does not say."""
    packed, count = measurement.context.get(HITS), measurement.context.get("images")
    if not packed or not count:
        return None
    import numpy as np

    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8))
    return bits[: int(count)].astype(bool) if len(bits) >= int(count) else None


def _scores(measurement: Measurement) -> Any:
    packed = measurement.context.get(SCORES)
    if not packed:
        return None
    import numpy as np

    return np.frombuffer(base64.b64decode(packed), np.float32).astype(np.float64)

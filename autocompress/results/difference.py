"""How far apart two accuracies are, on the same images wherever both records hold each answer."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autocompress.results.metric import Measurement

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: in a measurement's context: which images were answered rightly
HITS = "hits"


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of the first less that of the second.

    Args:
        points: in percentage points.
        stderr: its standard error, in points.
        paired: whether it comes from the same images one by one; if not, the two are taken as
            independent, which makes the error too large.
    """

    points: float
    stderr: float
    paired: bool

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.points - 1.96 * self.stderr

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.points + 1.96 * self.stderr


def difference(first: Measurement, second: Measurement) -> Difference:
    """Compare two accuracies.

    With ``b`` of ``n`` images that only the first gets right and ``c`` that only the second does,
    the difference is ``(b - c) / n`` and its variance ``(b + c - (b - c)^2 / n) / n^2``.

    References:
        Agresti, Categorical Data Analysis, section on matched pairs (Wald interval).
    """
    points = 100 * (first["accuracy"] - second["accuracy"])
    mine, theirs = _hits(first), _hits(second)
    same = first.context.get("split") == second.context.get("split")
    if mine is None or theirs is None or len(mine) != len(theirs) or not same:
        errors = (m.spread.get("accuracy", 0.0) for m in (first, second))
        return Difference(points, 100 * math.hypot(*errors), False)
    gain, loss = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    count = len(mine)
    variance = (gain + loss - (gain - loss) ** 2 / count) / count**2
    return Difference(points, 100 * math.sqrt(variance), True)


def pack_hits(correct: NDArray[np.bool_]) -> str:
    """``(N,)`` booleans as a text of N / 6 characters."""
    import numpy as np

    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def _hits(measurement: Measurement) -> Any:
    packed, count = measurement.context.get(HITS), measurement.context.get("images")
    if not packed or not count:
        return None
    import numpy as np

    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8))
    return bits[: int(count)].astype(bool) if len(bits) >= int(count) else None

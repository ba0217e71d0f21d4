"""Members of cascades whose accuracy and confidence are known: drawn, not trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autocompress.cascade.chain import Member

CLASSES = 5


def drawn_members(
    count: int,
    noises: Sequence[float],
    latencies: Sequence[float],
    seed: int = 0,
    fitted_on: int | None = None,
) -> tuple[list[Member], np.ndarray]:
    """Members that see the same inputs through noise of their own, and the targets.

    Args:
        count: inputs; some are harder than others for all members.
        noises: per member.
        latencies: in ms.
        seed: of the draw.
        fitted_on: the first so many inputs fit temperatures; half of them by default.
    """
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, count)
    clear = rng.gamma(2.0, 1.5, count)[:, None] * np.eye(CLASSES)[targets]
    shared = rng.standard_normal((count, CLASSES))
    half = np.arange(fitted_on if fitted_on is not None else count // 2)
    members = []
    for number, (noise, latency) in enumerate(zip(noises, latencies, strict=True)):
        own = rng.standard_normal((count, CLASSES))
        logits = 2 * (clear + 0.7 * shared + noise * own)
        members.append(Member.of(f"trial {number}", latency, logits, targets, half, number))
    return members, targets

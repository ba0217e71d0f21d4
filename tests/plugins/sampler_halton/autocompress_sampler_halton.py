"""A sampler that spreads policies evenly over the search space: Halton's sequence, scrambled."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats.qmc import Halton

from autocompress.controller.context import Context
from autocompress.controller.protocols import Proposal, Settled


class HaltonSampler:
    """Proposes the next points of the sequence, whatever became of those before.

    Args:
        context: of the study: its space, seed, budget and finished trials.
    """

    def __init__(self, context: Context) -> None:
        self.levels = [len(c.drawn_levels) for c in context.space.choices]
        self.points = Halton(len(self.levels), seed=context.config.seed)

    def suggest(self, n: int) -> list[Proposal]:
        """The next ``n`` points, as one level per choice."""
        points = self.points.random(n)
        return [
            Proposal("halton", tuple(int(x * k) for x, k in zip(point, self.levels, strict=True)))
            for point in points
        ]

    def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
        """Nothing to learn: the sequence is fixed in advance."""

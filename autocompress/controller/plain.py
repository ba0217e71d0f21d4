"""The plain samplers: starting policies first (if asked), then one of Optuna's alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autocompress.controller.context import Context
from autocompress.controller.optuna_study import OptunaController
from autocompress.controller.protocols import Proposal, Settled
from autocompress.controller.starts import ladders, warm_starts

if TYPE_CHECKING:
    from autocompress.controller.optuna_study import BaseSampler


class PlainProposer:
    """Starting policies, then ask.

    Args:
        context: of the study.
        sampler: one of Optuna's, by our name for it or as an object.
        origin: of its proposals; the name by default.
    """

    def __init__(self, context: Context, sampler: str | BaseSampler, origin: str = "") -> None:
        config = context.config
        self.origin = origin or str(sampler)
        self.controller = OptunaController(
            context.space,
            context.objectives,
            sampler,
            config.seed,
            config.trials,
            context.feasibility.baseline,
        )
        starts = ladders(context.space) if config.starts else ()
        self.queue = deque([*warm_starts(context), *starts])

    def suggest(self, n: int) -> list[Proposal]:
        """The next starting policies, then the sampler's choices."""
        found = [Proposal(*self.queue.popleft()) for _ in range(min(n, len(self.queue)))]
        while len(found) < n:
            found.append(Proposal(self.origin, self.controller.ask()))
        return found

    def update(self, completed: Sequence[Settled], active: Sequence[Proposal]) -> None:
        """Tell it, in the order of asking."""
        for one in sorted(completed, key=lambda s: s.trial.number):
            self.controller.tell(one.assignment, one.trial)

"""The plain samplers: seeds first (if asked), then one of Optuna's alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from autocompress.controller.loop import Context
from autocompress.controller.optuna_study import OptunaController
from autocompress.controller.seeds import ladders
from autocompress.policy.space import Assignment
from autocompress.results.trial import Trial


class PlainProposer:
    """Seeds, then ask.

    Args:
        context: of the study; ``config.sampler`` is one of Optuna's.
    """

    def __init__(self, context: Context) -> None:
        config = context.config
        self.sampler = config.sampler
        self.controller = OptunaController(
            context.space, context.objectives, config.sampler, config.seed, config.trials
        )
        self.queue = deque(ladders(context.space) if config.seeds else ())

    def propose(self, trials: Sequence[Trial]) -> tuple[str, Assignment] | None:
        """The next seed, or the sampler's choice."""
        if self.queue:
            return self.queue.popleft()
        return self.sampler, self.controller.ask()

    def tell(self, assignment: Assignment | None, trial: Trial) -> None:
        """Pass it on."""
        self.controller.tell(assignment, trial)

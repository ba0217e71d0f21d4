"""The screener: what a policy does to the outputs, without training or export, asked once each."""

from __future__ import annotations

import time
from collections.abc import MutableMapping

from autocompress.controller.protocols import Evaluator
from autocompress.policy.space import Assignment, Space
from autocompress.results.screened import Screened


class Screener:
    """Screens assignments, remembers the answers, and adds up the seconds.

    Args:
        space: of the assignments.
        evaluator: screens a policy.
        images: screening inputs at most.
        known: answers so far, by untrained digest and number of images; grows.
    """

    def __init__(
        self,
        space: Space,
        evaluator: Evaluator,
        images: int,
        known: MutableMapping[tuple[str, int], Screened] | None = None,
    ) -> None:
        self.space = space
        self.evaluator = evaluator
        self.images = images
        self.known = {} if known is None else known
        self.seconds = 0.0

    def __call__(self, assignment: Assignment) -> Screened:
        """Screen an assignment; the time counts as evaluation, not as bookkeeping."""
        start = time.monotonic()
        try:
            policy = self.space.decode(assignment)
            key = (policy.untrained_digest, self.images)
            if key not in self.known:
                self.known[key] = self.evaluator.screen(policy, self.images)
            return self.known[key]
        finally:
            self.seconds += time.monotonic() - start

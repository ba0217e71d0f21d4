"""The screener: what a policy does to the outputs, without training or export, asked once each."""

from __future__ import annotations

import math
import time
from collections.abc import MutableMapping, Sequence
from typing import cast

from autocompress.controller.protocols import Evaluator, SeveralEvaluator
from autocompress.policy.space import Assignment, Space
from autocompress.results.screened import Screened

_FEWEST = 16


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

    def afford(self, assignment: Assignment, seconds: float) -> None:
        """Take fewer images from now on, if screening one policy takes longer than that.

        A power of two, so that a run that goes on takes as many and finds its answers again.

        Args:
            assignment: a policy to try it with.
            seconds: that one policy may take.
        """
        policy = self.space.decode(assignment)
        few, many = min(_FEWEST, self.images), self.images
        self.evaluator.screen(policy, few)  # the first one also prepares what all others share
        start = time.monotonic()
        self.evaluator.screen(policy, few)
        fixed = time.monotonic()
        self.evaluator.screen(policy, many)
        took_few, took_many = fixed - start, time.monotonic() - fixed
        self.seconds += time.monotonic() - start
        if took_many <= seconds or many == few:
            return
        each = max(1e-9, (took_many - took_few) / (many - few))
        affordable = max(float(few), few + (seconds - took_few) / each)
        self.images = max(few, min(many, 2 ** int(math.log2(affordable))))

    def ahead(self, assignments: Sequence[Assignment]) -> None:
        """Screen several assignments in one go, where the evaluator can, so that asking is quick.

        Args:
            assignments: that will be asked about; those with an answer are passed over.
        """
        # not by `isinstance`: that reads all members, and a baseline is measured when it is read
        if not hasattr(type(self.evaluator), "screen_all"):
            return
        start = time.monotonic()
        policies = {}
        for assignment in assignments:
            policy = self.space.decode(assignment)
            key = (policy.untrained_digest, self.images)
            if key not in self.known:
                policies[key] = policy
        if policies:
            evaluator = cast(SeveralEvaluator, self.evaluator)
            found = evaluator.screen_all(list(policies.values()), self.images)
            for key, screened in zip(policies, found, strict=True):
                if screened is not None:
                    self.known[key] = screened
        self.seconds += time.monotonic() - start

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

"""Policies of a space that a search has not settled yet."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

from autocompress.policy.policy import Policy
from autocompress.policy.space import Assignment, Space

_COUNTED = 1000
"""Assignments of a space whose distinct policies are counted; a fraction of a second."""

_DRAWS = 1000
"""Random assignments of a larger space, of which one should be new."""


class Unseen:
    """Knows when a small space is used up, and draws what is left of any.

    Many assignments can stand for one policy: a student has no layers to set, and distillation
    changes nothing before training. Distinct policies count.

    Args:
        space: of the study.
        settled: says of a policy whether it needs no evaluation any more.
        seed: of the draws.
    """

    def __init__(self, space: Space, settled: Callable[[Policy], bool], seed: int) -> None:
        self.space = space
        self._settled = settled
        self._random = random.Random(seed)
        self._left: dict[str, Assignment] | None = None
        if math.prod(len(c.levels) for c in space.choices) <= _COUNTED:
            self._left = {}
            for levels in itertools.product(*(range(len(c.levels)) for c in space.choices)):
                policy = space.decode(levels)
                if not settled(policy):
                    self._left.setdefault(policy.untrained_digest, levels)

    @property
    def none_left(self) -> bool:
        """Whether every policy is settled; never so of a space too large to be counted."""
        return self._left is not None and not self._left

    def remove(self, policy: Policy) -> None:
        """Take note that a policy is settled, or under way."""
        if self._left is not None:
            self._left.pop(policy.untrained_digest, None)

    def draw(self) -> Assignment | None:
        """A random policy that is not settled; ``None`` where none is left, or none was found."""
        if self._left is not None:
            return self._random.choice(list(self._left.values())) if self._left else None
        for _ in range(_DRAWS):
            # a student is a starting policy; of random ones most would be over the budget or alike
            levels = self.space.draw(self._random)
            if not self._settled(self.space.decode(levels)):
                return levels
        return None

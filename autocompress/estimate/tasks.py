"""Short timings, each taken again where something outside disturbed it; packed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autocompress.measure.quiet import QuietSpeed, Work
from autocompress.measure.rounds import Clock

_ATTEMPTS = 5
"""At a task: a spell may begin while it is done."""


@dataclass
class Tasks(Work):
    """Does every task, and those again before or after which the machine was slower than it can be.

    Args:
        tasks: short ones; one that is done again should keep its best result.
        sentinel: milliseconds of something that always does the same work; taken between tasks.
    """

    tasks: Sequence[Callable[[], None]]
    sentinel: Callable[[], float]
    pause: Callable[[float], None] = time.sleep
    clock: Clock = time.perf_counter
    # nothing is forgotten: all of it is over in minutes
    quiet: QuietSpeed = field(default_factory=lambda: QuietSpeed(deque()))

    def run(self) -> list[int]:
        """Places of the tasks that were disturbed to the end."""
        self._tries, self._slowest = [0] * len(self.tasks), [math.inf] * len(self.tasks)
        self.quiet.note(self.look())
        if self.tasks:
            self.collect(fewest=len(self.tasks))
        return [i for i, ms in enumerate(self._slowest) if self.quiet.disturbed(ms)]

    def piece(self, limit_s: float, patient: bool) -> bool:
        """The task that was tried least often."""
        before, i = self._now, min(self._pending(), key=self._tries.__getitem__)
        self.tasks[i]()
        self.quiet.note(self.look())
        self._tries[i] += 1
        self._slowest[i] = max(before, self._now)
        return self.quiet.disturbed(self._now)

    def settled(self) -> bool:
        """Whether each was done in quiet, as far as is known by now, or too often."""
        return not self._pending()

    def look(self) -> float:
        """The sentinel's milliseconds."""
        self._now = self.sentinel()
        return self._now

    def _pending(self) -> list[int]:
        again = [self.quiet.disturbed(ms) for ms in self._slowest]
        return [i for i, tries in enumerate(self._tries) if again[i] and tries < _ATTEMPTS]

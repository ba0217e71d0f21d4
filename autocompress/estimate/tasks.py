"""Short timings, each taken again where something outside disturbed it.

Packed for other devices; loads nothing.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
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
        pause: waits for so many seconds.
        clock: in seconds.
    """

    tasks: Sequence[Callable[[], None]]
    sentinel: Callable[[], float]
    pause: Callable[[float], None] = time.sleep
    clock: Clock = time.perf_counter
    # nothing is forgotten: all of it is over in minutes
    quiet: QuietSpeed = field(default_factory=lambda: QuietSpeed(deque()))
    _now: float = 0.0
    _slowest: dict[int, float] = field(default_factory=dict)
    _tries: Counter[int] = field(default_factory=Counter)

    def run(self) -> list[int]:
        """Places of the tasks that were disturbed to the end."""
        self.quiet.note(self.look())
        if self.tasks:
            self.collect(fewest=len(self.tasks))
        return [i for i, ms in sorted(self._slowest.items()) if self.quiet.disturbed(ms)]

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
        return [
            i
            for i in range(len(self.tasks))
            if self._tries[i] < _ATTEMPTS and self.quiet.disturbed(self._slowest.get(i, math.inf))
        ]

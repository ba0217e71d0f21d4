"""Tells whether something outside disturbs a timing, by how quickly a known model runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Before each further try while the machine is disturbed; it has been for 5 to 15 seconds."""
_SLACK = 0.1
"""Timings on a quiet machine differ by less than this fraction, disturbed ones by 10 to 45 %."""
_REMEMBERED = 30


@dataclass
class QuietSpeed:
    """How quickly a model runs while nothing disturbs it.

    Whatever comes from outside only slows, so that the quickest of the latest timings say it: their
    lowest decile, for a single one may be luck. Older ones are forgotten: where the processor has
    become slower for good (a laptop off its charger), waiting for what was would be in vain.

    Args:
        recent: the latest timings, in milliseconds.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def note(self, ms: float) -> None:
        """Remember a timing."""
        self.recent.append(ms)

    def disturbed(self, ms: float) -> bool:
        """Whether a timing is over what it would be on a quiet machine."""
        if not self.recent:
            return False
        return ms > (1 + _SLACK) * sorted(self.recent)[(len(self.recent) - 1) // 10]


def in_quiet(
    tasks: Sequence[Callable[[], None]],
    sentinel: Callable[[], float],
    pause: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Do every task, and those again beside which the sentinel was slower than at other times.

    Args:
        tasks: short ones; one that is done again should keep its best result.
        sentinel: milliseconds of something that always does the same work; taken between tasks.
        pause: waits for so many seconds.

    Returns:
        Places of the tasks that were disturbed to the end.
    """
    quiet = QuietSpeed(deque())
    pending = list(range(len(tasks)))
    for wait in (0.0, *PAUSES_S):
        pause(wait)
        before, beside = sentinel(), {}
        quiet.note(before)
        for i in pending:
            tasks[i]()
            after = sentinel()
            quiet.note(after)
            before, beside[i] = after, max(before, after)
        pending = [i for i in pending if quiet.disturbed(beside[i])]
        if not pending:
            break
    return pending

"""Tells whether something outside disturbs a timing, by how quickly a known model runs."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autocompress.errors import InputError
from autocompress.measure.rounds import SLACK

PATIENCE_S = 16.0
"""Longest wait for a quiet machine: spells of disturbance have lasted for 1 to 30 seconds."""
_VARIABLE = "AUTOCOMPRESS_QUIET_WAIT_S"
_LOOK_EVERY_S = 0.25
_ATTEMPTS = 5
"""At a task: a spell may begin while it is done."""
_REMEMBERED = 30
_EXPERIENCE = 10
"""Timings after which the lowest decile says something."""


def longest_wait_s() -> float:
    """Longest wait for a quiet machine, in seconds: ``AUTOCOMPRESS_QUIET_WAIT_S``, or 16.

    With 0 nothing waits; timings on a busy machine are then marked as disturbed sooner.

    Raises:
        InputError: no number of seconds.
    """
    text = os.environ.get(_VARIABLE, "")
    if not text:
        return PATIENCE_S
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise InputError(f"`{_VARIABLE}` must be seconds, 0 or more, got {text!r}.")
    return found


@dataclass
class QuietSpeed:
    """How quickly a model runs while nothing disturbs it.

    Whatever comes from outside only slows, so that the quickest of the latest timings say it: their
    lowest decile, for a single one may be luck. Older ones are forgotten: where the processor has
    become slower for good (a laptop off its charger), waiting for what was would be in vain.

    Args:
        recent: the latest timings, in milliseconds.
        in_vain: timings in a row that stayed disturbed however long they waited.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    in_vain: int = 0

    def note(self, ms: float) -> None:
        """Remember a timing."""
        self.recent.append(ms)

    @property
    def experienced(self) -> bool:
        """Whether enough timings are known to tell a quiet machine by a single one."""
        return len(self.recent) >= _EXPERIENCE

    @property
    def patience_s(self) -> float:
        """Seconds that a timing may wait: half after one in vain, a quarter after two, and so on.

        Where a machine stays disturbed for minutes, a study goes on.
        """
        return longest_wait_s() / 2**self.in_vain

    @property
    def slowest_ms(self) -> float | None:
        """What a timing on a quiet machine is at most, in milliseconds; unknown without any."""
        if not self.recent:
            return None
        return (1 + SLACK) * sorted(self.recent)[(len(self.recent) - 1) // 10]

    def disturbed(self, ms: float) -> bool:
        """Whether a timing is over what it would be on a quiet machine."""
        slowest = self.slowest_ms
        return slowest is not None and ms > slowest

    def wait(
        self,
        look: Callable[[], float],
        seconds: float,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> bool:
        """Wait until the model runs quickly again, looking four times a second.

        Args:
            look: milliseconds of the model at this moment, roughly.
            seconds: longest wait; it looks once in any case.
            pause: waits for so many seconds.
            clock: in seconds.

        Returns:
            Whether it runs quickly.
        """
        end = clock() + seconds
        while self.disturbed(look()):
            if clock() >= end:
                return False
            pause(_LOOK_EVERY_S)
        return True


def repeat_disturbed(
    tasks: Sequence[Callable[[], None]],
    look: Callable[[], float],
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[int]:
    """Do every task, and those again before or after which the machine was slower than it can be.

    Args:
        tasks: short ones; one that is done again should keep its best result.
        look: milliseconds of something that always does the same work; taken between tasks.
        pause: waits for so many seconds.
        clock: in seconds.

    Returns:
        Places of the tasks that were disturbed to the end.
    """
    quiet = QuietSpeed(deque())  # nothing is forgotten: all of it is over in seconds
    pending = list(range(len(tasks)))
    slowest: dict[int, float] = {}
    for attempt in range(_ATTEMPTS):
        before = look()
        quiet.note(before)
        for i in pending:
            if attempt and quiet.disturbed(before):
                if not quiet.wait(look, longest_wait_s(), pause, clock):
                    return [i for i in pending if quiet.disturbed(slowest[i])]
                before = look()
            tasks[i]()
            after = look()
            quiet.note(after)
            before, slowest[i] = after, max(before, after)
        pending = [i for i in pending if quiet.disturbed(slowest[i])]
        if not pending:
            break
    return pending

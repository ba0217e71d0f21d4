"""The loop of all timing, and how it tells whether something outside disturbs; it is packed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from autocompress.machine.waiting import seconds_from
from autocompress.measure.rounds import SLACK, Clock

PATIENCE_S = 16.0
"""Longest wait for a quiet machine: spells of disturbance have lasted for 1 to 30 seconds."""
WAIT_VARIABLE = "AUTOCOMPRESS_QUIET_WAIT_S"
TIMING_VARIABLE = "AUTOCOMPRESS_TIMING_S"
_LOOK_EVERY_S = 0.25
_REMEMBERED = 30
_EXPERIENCE = 10
"""Timings after which the lowest decile says something."""


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
        return math.ldexp(seconds_from(WAIT_VARIABLE, PATIENCE_S), -self.in_vain)

    @property
    def slowest_ms(self) -> float:
        """What a timing on a quiet machine is at most, in milliseconds; infinite without any."""
        if not self.recent:
            return math.inf
        return (1 + SLACK) * sorted(self.recent)[(len(self.recent) - 1) // 10]

    def disturbed(self, ms: float) -> bool:
        """Whether a timing is over what it would be on a quiet machine."""
        return ms > self.slowest_ms


class Work(ABC):
    """What is timed piece by piece; ``quiet`` is how quickly what it looks at runs in quiet."""

    quiet: QuietSpeed
    pause: Callable[[float], None]
    clock: Clock

    @abstractmethod
    def piece(self, limit_s: float, patient: bool) -> bool:
        """Take the next one, for so many seconds where it may be of any length; where ``patient``,
        break off once the machine is disturbed. Returns whether it was."""

    @abstractmethod
    def settled(self) -> bool:
        """Whether the pieces tell enough."""

    @abstractmethod
    def look(self) -> float:
        """Milliseconds, at this moment, of what always does the same work."""

    def collect(self, fewest: int, seconds: float = math.inf, apart_s: float = 0.0) -> float:
        """Take pieces until they are settled or the time is over; after a disturbed one, wait.

        Args:
            fewest: pieces that are taken even where the machine stays disturbed.
            seconds: time limit for pieces; waiting comes on top.
            apart_s: seconds between two pieces.

        Returns:
            Seconds of waiting; meanwhile it looks four times a second.
        """
        quiet, clock = self.quiet, self.clock
        patience, left, waited, count = quiet.patience_s, seconds, 0.0, 0
        while True:
            begin = clock()
            disturbed = self.piece(min(left, seconds / fewest), patience > 0)
            end = clock()
            left, count = left - (end - begin), count + 1
            settled = self.settled()
            given_up = patience <= 0 and count >= fewest
            if settled or (given_up if disturbed else left <= 0):
                break
            if not disturbed:
                self.pause(min(apart_s, quiet.patience_s))
                patience = quiet.patience_s
                continue
            while quiet.disturbed(self.look()) and clock() - end < patience:
                self.pause(_LOOK_EVERY_S)
            waited += clock() - end
            patience -= clock() - begin
        quiet.in_vain = quiet.in_vain + 1 if disturbed and not settled else 0
        return waited

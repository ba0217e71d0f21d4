"""What every method of the portfolio is, and the two that take what others made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from autocompress.controller.optuna_study import OptunaController
from autocompress.controller.protocols import Proposal
from autocompress.policy.space import Assignment
from autocompress.results.trial import Trial


@dataclass(frozen=True, slots=True)
class Round:
    """What the next proposals are to improve.

    Args:
        number: of the round, from 1; 0 before any.
        front: members of the front, the cheapest first.
        answer: the trial to vary; ``None`` leaves it to the method which one.
    """

    number: int = 0
    front: Sequence[Trial] = ()
    answer: Trial | None = None


class Method(Protocol):
    """One way to find proposals."""

    def suggest(self, n: int, now: Round) -> list[Proposal]:
        """At most ``n`` proposals; none where the method has nothing for this round."""


class Starts:
    """Starting policies.

    Args:
        named: origin and assignment of each, the first one first.
    """

    def __init__(self, named: Iterable[tuple[str, Assignment]]) -> None:
        self.queue = deque(named)

    def suggest(self, n: int, now: Round) -> list[Proposal]:
        """The next ones."""
        return [Proposal(*self.queue.popleft()) for _ in range(min(n, len(self.queue)))]


class Candidates:
    """What Optuna's sampler would ask for.

    Args:
        optuna: told of every trial.
    """

    def __init__(self, optuna: OptunaController) -> None:
        self.optuna = optuna

    def suggest(self, n: int, now: Round) -> list[Proposal]:
        """Drawn anew each time."""
        return [Proposal("tpe", self.optuna.candidate()) for _ in range(n)]

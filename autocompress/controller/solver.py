"""The exact solver: the least total sensitivity within cost limits, one level per choice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autocompress.policy.space import Assignment, Space

Costs = Callable[[Assignment], Mapping[str, float]]
"""From an assignment to metric name and cost; microseconds."""

Tables = dict[tuple[Assignment, tuple[str, ...]], list[NDArray[np.float64]]]
"""Marginal costs around assignments, per metrics asked for."""

_GAP = 1e-3
_NODES = 2000
_HARDEN_ROUNDS = 30
_POLISH_ROUNDS = 20
_POLISH_LOOKS = 30
_OPTIMISM = 0.05
"""Pairs that seem to be over the limits by so little are looked at all the same."""


def knapsack(
    losses: Sequence[NDArray[np.float64]],
    costs: Sequence[NDArray[np.float64]],
    limits: NDArray[np.float64],
    order: Sequence[int] = (),
) -> Assignment | None:
    """The multiple-choice knapsack, solved to a tenth of a percent of its optimum.

    The proof of the last tenth can take a hundred times as long as the answer, for losses that are
    known to a few percent.

    Args:
        losses: per choice, ``(levels,)`` loss of each level.
        costs: per choice, ``(metrics, levels)`` cost of each level, of any sign.
        limits: ``(metrics,)`` upper bounds on the summed costs.
        order: positions of choices of which each may only leave its level 0 where the one before
            it does.

    Returns:
        One level per choice, or ``None`` where nothing fits.

    References:
        Sinha and Zoltners, The Multiple-Choice Knapsack Problem, Operations Research 27 (1979).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    sizes = [len(loss) for loss in losses]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    one_each = np.zeros((len(sizes), starts[-1]))
    for i, size in enumerate(sizes):
        one_each[i, starts[i] : starts[i] + size] = 1
    after = np.zeros((max(0, len(order) - 1), starts[-1]))
    for row, (first, second) in enumerate(pairwise(order)):
        after[row, starts[second] + 1 : starts[second + 1]] = 1
        after[row, starts[first] + 1 : starts[first + 1]] = -1
    total = np.concatenate(costs, axis=1)
    # rows of like size keep the solver's tolerances meaningful
    scale = np.maximum(np.abs(total).max(axis=1), 1e-12)
    with _no_stdout():
        found = milp(
            np.concatenate(losses),
            integrality=np.ones(starts[-1]),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(total / scale[:, None], -np.inf, limits / scale),
                *([LinearConstraint(after, -np.inf, 0)] if len(after) else []),
            ],
            # nodes, not seconds: a limit by the clock would make two runs differ
            options={"mip_rel_gap": _GAP, "node_limit": _NODES, "presolve": False},
        )
    if found.x is None:
        return None
    return tuple(int(np.argmax(found.x[starts[i] : starts[i + 1]])) for i in range(len(sizes)))


@contextmanager
def _no_stdout() -> Iterator[None]:
    """Drop what the solver's C++ prints: lines of its own debugging, now and then.

    They would land in the output of ``--json``, or in the middle of a progress display; how a
    solution ended is in what ``milp`` returns.
    """
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def solve(
    space: Space,
    losses: Sequence[NDArray[np.float64]],
    costs: Costs,
    limits: Mapping[str, float],
    start: Assignment | None = None,
    rounds: int = 4,
    *,
    polish: bool = True,
    known: Tables | None = None,
    order: Sequence[int] = (),
) -> Assignment | None:
    """The knapsack on costs that are not additive, linearized again around each answer.

    Args:
        space: of the assignments.
        losses: per choice, loss of each level.
        costs: of whole assignments.
        limits: metric name to upper bound.
        start: where costs are linearized first; the hardest levels by default.
        rounds: at most so many linearizations.
        polish: end with exchanges of one and two levels under the true costs.
        known: marginal costs around assignments, kept between calls by whoever asks often.
        order: as in ``knapsack``.

    Returns:
        The best assignment found whose true costs meet the limits, or ``None``.
    """
    at = _Problem(space, losses, costs, limits, known, order)
    current = start or space.hardest
    best: tuple[float, Assignment] | None = None
    seen: set[Assignment] = set()
    slack = np.zeros(len(at.names))
    for _ in range(rounds):
        found = knapsack(losses, at.marginals(current), -at.over(current) - slack, order)
        if found is None:
            break
        over = at.over(found)
        if at.fits(over):
            loss = float(sum(table[level] for table, level in zip(losses, found, strict=True)))
            if best is None or loss < best[0]:
                best = (loss, found)
        else:
            slack += np.maximum(over, 0)  # aim lower next time
        if found in seen:
            break
        seen.add(found)
        current = found
    answer = best[1] if best else _hardened(at, current)
    return _polished(at, answer) if answer is not None and polish else answer


def cheapest(space: Space, costs: Costs, metric: str, start: Assignment) -> Assignment:
    """An assignment of about the least cost, without a student.

    The hardest levels are not always the cheapest in latency: a layer of low rank is two layers,
    each with the overhead of one. Each choice takes its cheapest level in turn until nothing
    changes.

    Args:
        space: of the assignments.
        costs: of whole assignments.
        metric: the cost that counts.
        start: where to begin.
    """
    current = start
    least = costs(current)[metric]
    while True:
        before = current
        for i, choice in enumerate(space.choices):
            for level in range(len(choice.levels) if choice.kind != "student" else 0):
                changed = (*current[:i], level, *current[i + 1 :])
                cost = costs(changed)[metric]
                if cost < least:
                    current, least = changed, cost
        if current == before:
            return current


@dataclass
class _Problem:
    """What a solution is looked for in; the arguments of ``solve``."""

    space: Space
    losses: Sequence[NDArray[np.float64]]
    costs: Costs
    limits: Mapping[str, float]
    known: Tables | None
    order: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.names = list(self.limits)
        self.bounds: NDArray[np.float64] = np.array([self.limits[n] for n in self.names])

    def spent(self, assignment: Assignment) -> NDArray[np.float64]:
        """True costs, in the order of the limits."""
        found = self.costs(assignment)
        return np.array([found[n] for n in self.names], dtype=np.float64)

    def over(self, assignment: Assignment) -> NDArray[np.float64]:
        """How far the true costs are over the limits."""
        return self.spent(assignment) - self.bounds

    def fits(self, over: NDArray[np.float64]) -> bool:
        """Whether that is nothing but rounding."""
        return bool((over <= 1e-9 * np.abs(self.bounds)).all())

    def ordered(self, assignment: Sequence[int]) -> bool:
        """Whether the choices that have an order keep it."""
        return all(assignment[a] or not assignment[b] for a, b in pairwise(self.order))

    def marginals(self, current: Assignment) -> list[NDArray[np.float64]]:
        """What each level of each choice adds to the costs, ``(metrics, levels)`` each."""
        key = (current, tuple(self.names))
        if self.known is not None and key in self.known:
            return self.known[key]
        base = self.spent(current)
        tables = []
        for i, choice in enumerate(self.space.choices):
            columns = [
                self.spent((*current[:i], level, *current[i + 1 :])) - base
                for level in range(len(choice.levels))
            ]
            tables.append(np.stack(columns, axis=1))
        if self.known is not None:
            self.known[key] = tables
        return tables


def _hardened(at: _Problem, start: Assignment) -> Assignment | None:
    """Change choices, the least loss per cost saved first, until the true costs meet the bounds.

    For where every linearization ended over the limits: far from the point that it was made at,
    products of widths are misjudged by multiples.
    """
    current = list(start)
    for _ in range(_HARDEN_ROUNDS):
        over = at.over(tuple(current))
        if at.fits(over):
            return tuple(current)
        worst = int(np.argmax(over / np.maximum(np.abs(at.bounds), 1e-12)))
        moves = []
        tables = at.marginals(tuple(current))
        for i, (loss, table) in enumerate(zip(at.losses, tables, strict=True)):
            saved = -table[worst]
            price = np.maximum(loss - loss[current[i]], 0.0) / np.where(saved > 0, saved, np.nan)
            if not np.isnan(price).all():
                level = int(np.nanargmin(price))
                if not at.ordered((*current[:i], level, *current[i + 1 :])):
                    continue  # its turn comes when those before it have moved
                moves.append((float(price[level]), i, level, float(saved[level])))
        if not moves:
            return None
        missing = over[worst]
        for _, i, level, saved_there in sorted(moves):
            current[i] = level
            missing -= saved_there
            if missing <= 0:
                break
    return None


def _polished(at: _Problem, start: Assignment) -> Assignment:
    """Change one or two choices at a time while that lowers the loss within the true limits.

    Where costs are not additive the linearized answer leaves some of the limit unused, and a
    product of two widths is misjudged most where both change. The marginal costs at hand say
    which pairs are worth a true look.
    """
    current = start
    for _ in range(_POLISH_ROUNDS):
        over = at.over(current)
        if (over > 0).any():
            return current
        owner = np.concatenate([np.full(len(t), i) for i, t in enumerate(at.losses)])
        level = np.concatenate([np.arange(len(t)) for t in at.losses])
        gain = np.concatenate([t - t[k] for t, k in zip(at.losses, current, strict=True)])
        extra = np.concatenate(at.marginals(current), axis=1)
        both = gain[:, None] + gain[None, :]
        spent = extra[:, :, None] + extra[:, None, :]
        fits = (spent <= -over[:, None, None] * (1 + _OPTIMISM)).all(axis=0)
        usable = fits & (owner[:, None] != owner[None, :]) & (both < -1e-12)
        first, second = np.nonzero(np.triu(usable))
        order = np.argsort(both[first, second], kind="stable")[:_POLISH_LOOKS]
        better = None
        for a, b in zip(first[order], second[order], strict=True):
            changed = list(current)
            changed[owner[a]], changed[owner[b]] = int(level[a]), int(level[b])
            candidate = tuple(changed)
            if at.ordered(candidate) and (at.over(candidate) <= 0).all():
                better = candidate
                break
        if better is None:
            return current
        current = better
    return current

"""The solver: the least total sensitivity within cost limits, one level per choice.

Costs are no sums over choices: a convolution costs the product of its widths. They are linearized,
which makes a multiple-choice knapsack, and its answer is followed as far as the true costs allow,
where they are linearized again: sequential linear programming with a line search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autocompress.controller.knapsack import knapsack
from autocompress.policy.space import Assignment, Space

Costs = Callable[[Assignment], Mapping[str, float]]
"""From an assignment to metric name and cost; microseconds."""

Marginals = Callable[[Assignment, Sequence[str], bool], list[NDArray[np.float64]]]
"""From an assignment and metric names to what each level of each choice would add to the costs of
the assignment: ``(metrics, levels)`` per choice. The last argument asks for what is true there, of
whoever gives what was true nearby otherwise."""

Near = Callable[[Assignment], Callable[[int, int], Mapping[str, float]]]
"""From an assignment to the costs of those that differ from it in one choice, by its place and a
level."""

_ROUNDING = 1e-9
"""Costs that differ by so little of themselves are the same."""
_TRIFLE = 1e-9
"""Of a limit; what a level costs at least where its loss is divided by it."""
_EXACT = 400
"""Levels of all choices together, up to which every knapsack may be solved exactly."""
_IN_VAIN = 1
"""Linearizations in a row that may bring nothing before the last."""
_LOOKS = 2000
"""Levels that are looked at anew where the answer is, all looks together, but once at least."""
_WORTH = 0.002
"""Share of the loss that another look at what is true at the answer has to bring."""
_FILL_ROUNDS = 8
_HARDEN_ROUNDS = 30
_POLISH_ROUNDS = 20
_POLISH_LOOKS = 30
_POLISH_LEVELS = 600
"""Levels whose pairs are looked at in one round; the most promising ones of more."""
_OPTIMISM = 0.05
"""Pairs that seem to be over the limits by so little are looked at all the same."""


def solve(
    space: Space,
    losses: Sequence[NDArray[np.float64]],
    costs: Costs,
    limits: Mapping[str, float],
    start: Assignment | None = None,
    rounds: int = 6,
    *,
    cheap: Assignment | None = None,
    polish: bool = True,
    marginals: Marginals | None = None,
    order: Sequence[int] = (),
    seconds: float = math.inf,
) -> Assignment | None:
    """The least loss under costs that are not additive.

    Args:
        space: of the assignments.
        losses: per choice, loss of each level.
        costs: of whole assignments.
        limits: metric name to upper bound.
        start: where costs are linearized first; by default the hardest levels, of what has an order
            the mildest: where a block is gone, nothing tells what else would make of its layers.
        rounds: at most so many linearizations.
        cheap: about the cheapest, where it is known; begun from where nothing else is made to fit.
        polish: end with an exact knapsack, and exchanges of one and two levels under true costs.
        marginals: where they are found more quickly than from costs of whole assignments; they may
            be off by a little, as answers are judged by ``costs``.
        order: as in ``knapsack``.
        seconds: nothing new is begun after them: an answer that would be improved stays as it is.

    Returns:
        The best assignment found whose true costs meet the limits, or ``None``.
    """
    tables = marginals or partial(_marginals, space, costs)
    at = _Problem(space, losses, costs, limits, tables, order, time.monotonic() + seconds)
    kept = tuple(0 if i in {*order} else level for i, level in enumerate(space.hardest))
    begins = (start,) if start else (kept, space.hardest)
    current = _fitting(at, (*begins, cheap) if cheap else begins)
    if current is None:
        return None
    best, seen, in_vain = current, {current}, 0
    exact = sum(map(len, losses)) <= _EXACT
    for _ in range(rounds):
        current = _step(at, current, exact=exact)
        found = _filled(at, current)
        # a point with room left is the better one to go on from, where there are rounds to do so
        current = current if polish else found
        in_vain += 1
        if at.loss(found) < at.loss(best):
            best, in_vain = found, 0
        if current in seen or in_vain > _IN_VAIN or at.late:
            break
        seen.add(current)
    return _ended(at, best, rounds, exact=exact) if polish and not at.late else best


def _marginals(
    space: Space, costs: Costs, current: Assignment, names: Sequence[str], fresh: bool
) -> list[NDArray[np.float64]]:
    """From costs of whole assignments."""
    own = costs(current)
    tables = []
    for i, choice in enumerate(space.choices):
        each = [
            costs((*current[:i], level, *current[i + 1 :])) for level in range(len(choice.levels))
        ]
        tables.append(np.array([[c[n] - own[n] for c in each] for n in names], dtype=np.float64))
    return tables


def cheapest(space: Space, near: Near, metric: str, start: Assignment) -> Assignment:
    """An assignment of about the least cost, without a student.

    The hardest levels are not always the cheapest in latency: a layer of low rank is two layers,
    each with the overhead of one. Each choice takes its cheapest level in turn until nothing
    changes.

    Args:
        space: of the assignments.
        near: costs of small changes.
        metric: the cost that counts.
        start: where to begin.
    """
    current = start
    look = near(current)
    least = look(0, current[0])[metric] if space.choices else 0.0
    while True:
        before = current
        for i, choice in enumerate(space.choices):
            own = current[i]
            for level in range(len(choice.levels) if not choice.replaces else 0):
                cost = look(i, level)[metric]
                if cost < least - _ROUNDING * abs(least):
                    own, least = level, cost
            if own != current[i]:
                current = (*current[:i], own, *current[i + 1 :])
                look = near(current)
        if current == before:
            return current


@dataclass
class _Problem:
    """What a solution is looked for in; the arguments of ``solve``."""

    space: Space
    losses: Sequence[NDArray[np.float64]]
    costs: Costs
    limits: Mapping[str, float]
    marginals_at: Marginals
    order: Sequence[int] = ()
    ends: float = math.inf

    def __post_init__(self) -> None:
        self.names = list(self.limits)
        self.bounds: NDArray[np.float64] = np.array([self.limits[n] for n in self.names])

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.ends

    def loss(self, assignment: Assignment) -> float:
        """Summed over the choices."""
        return float(sum(t[level] for t, level in zip(self.losses, assignment, strict=True)))

    def over(self, assignment: Assignment) -> NDArray[np.float64]:
        """How far the true costs are over the limits."""
        found = self.costs(assignment)
        return np.array([found[n] for n in self.names], dtype=np.float64) - self.bounds

    def fits(self, assignment: Assignment) -> bool:
        """Whether the true costs are over the limits by nothing but rounding."""
        return bool((self.over(assignment) <= _ROUNDING * np.abs(self.bounds)).all())

    def shares(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """The greatest share of a limit that each level adds, ``(levels,)``; at least a trifle."""
        scale = np.maximum(np.abs(self.bounds), 1e-12)
        worst: NDArray[np.float64] = (table / scale[:, None]).max(axis=0)
        return np.maximum(worst, _TRIFLE)

    def changed(self, assignment: Assignment, changes: Sequence[tuple[int, int]]) -> Assignment:
        """An assignment after changes (choice, level), as far as these keep the order."""
        levels = list(assignment)
        for i, level in changes:
            levels[i] = level
        for before, after in pairwise(self.order):
            levels[after] = levels[after] if levels[before] else 0
        return tuple(levels)

    def ordered(self, assignment: Sequence[int]) -> bool:
        """Whether the choices that have an order keep it."""
        return all(assignment[a] or not assignment[b] for a, b in pairwise(self.order))

    def marginals(self, current: Assignment, *, fresh: bool = False) -> list[NDArray[np.float64]]:
        """What each level of each choice adds to the costs, ``(metrics, levels)`` each."""
        return self.marginals_at(current, self.names, fresh)


def _ended(at: _Problem, best: Assignment, rounds: int, *, exact: bool) -> Assignment:
    """Improved by what costs are where the answer is, an exact knapsack, and exchanges."""
    for _ in range(max(1, min(rounds, _LOOKS // max(1, sum(map(len, at.losses)))))):
        at.marginals(best, fresh=True)
        step = _step(at, best, exact=exact)
        found = min(_filled(at, step), _filled(at, best), key=at.loss)
        if at.loss(found) > (1 - _WORTH) * at.loss(best):
            break
        best = found
        if at.late:
            return best
    found = _filled(at, _step(at, best, exact=True))
    return _polished(at, min(best, found, key=at.loss))


def _step(at: _Problem, current: Assignment, *, exact: bool = False) -> Assignment:
    """Towards the knapsack's answer around an assignment, as far as the true costs allow."""
    tables = at.marginals(current)
    found = knapsack(at.losses, tables, -at.over(current), at.order, exact=exact)
    if found is None:
        return current
    priced = []
    for i, (loss, table) in enumerate(zip(at.losses, tables, strict=True)):
        level = found[i]
        if level != current[i]:
            saves = bool((table[:, level] <= 0).all())
            price = (loss[level] - loss[current[i]]) / at.shares(table)[level]
            priced.append((not saves, price, i, level))
    return _as_far_as_fits(at, current, [(i, level) for _, _, i, level in sorted(priced)])


def _as_far_as_fits(
    at: _Problem, current: Assignment, changes: Sequence[tuple[int, int]]
) -> Assignment:
    """Make as many of some changes, one after the other, as the true costs allow; by bisection."""
    whole = at.changed(current, changes)
    if at.fits(whole):
        return whole
    fit, over = 0, len(changes)
    while over - fit > 1:
        middle = (fit + over) // 2
        if at.fits(at.changed(current, changes[:middle])):
            fit = middle
        else:
            over = middle
    return at.changed(current, changes[:fit])


def _filled(at: _Problem, current: Assignment) -> Assignment:
    """Soften choices, the most loss per cost first, as long as the true costs meet the limits."""
    for _ in range(_FILL_ROUNDS):
        left, priced = -at.over(current), []
        for i, (loss, table) in enumerate(zip(at.losses, at.marginals(current), strict=True)):
            fits = (table <= left[:, None]).all(axis=0)
            price = np.where(fits, np.minimum(loss - loss[current[i]], 0.0) / at.shares(table), 0.0)
            level = int(np.argmin(price))
            if price[level] < 0:
                priced.append((float(price[level]), i, level))
        filled = _as_far_as_fits(at, current, [(i, level) for _, i, level in sorted(priced)])
        if at.loss(filled) >= at.loss(current):
            return current
        current = filled
        if at.late:
            break
    return current


def _fitting(at: _Problem, begins: Sequence[Assignment]) -> Assignment | None:
    """The first that is within the limits, or is made so."""
    for begin in dict.fromkeys(begins):
        first = at.changed(begin, ())
        fitting = first if at.fits(first) else _hardened(at, first)
        if fitting is not None:
            return fitting
    return None


def _hardened(at: _Problem, start: Assignment) -> Assignment | None:
    """Change choices, the least loss per cost saved first, until the true costs meet the bounds.

    For a start that is over the limits.
    """
    current = list(start)
    for _ in range(_HARDEN_ROUNDS):
        if at.fits(tuple(current)):
            return tuple(current)
        over = at.over(tuple(current))
        worst = int(np.argmax(over / np.maximum(np.abs(at.bounds), 1e-12)))
        moves = []
        tables = at.marginals(tuple(current))
        for i, (loss, table) in enumerate(zip(at.losses, tables, strict=True)):
            saved = -table[worst]
            price = np.maximum(loss - loss[current[i]], 0.0) / np.where(saved > 0, saved, np.nan)
            # another architecture saves everything, and is not what the levels are about
            if not np.isnan(price).all() and not at.space.choices[i].replaces:
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
        if at.late or (over > 0).any():
            return current
        owner = np.concatenate([np.full(len(t), i) for i, t in enumerate(at.losses)])
        level = np.concatenate([np.arange(len(t)) for t in at.losses])
        gain = np.concatenate([t - t[k] for t, k in zip(at.losses, current, strict=True)])
        extra = np.concatenate(at.marginals(current), axis=1)
        few = _promising(gain, extra, np.abs(at.bounds))
        owner, level, gain, extra = owner[few], level[few], gain[few], extra[:, few]
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


def _promising(
    gain: NDArray[np.float64], extra: NDArray[np.float64], bounds: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Which of many levels to look at in pairs: those that lower the loss most for what they cost,
    and those that save most for what they lose; in their order."""
    if len(gain) <= _POLISH_LEVELS:
        return np.arange(len(gain))
    cost = (extra / np.maximum(bounds, 1e-12)[:, None]).max(axis=0)
    half = _POLISH_LEVELS // 2
    lowering = np.where(gain < 0, gain / np.maximum(cost, 1e-6), 0.0)
    saving = np.where(cost < 0, cost / np.maximum(gain, 1e-6), 0.0)
    return np.unique([*np.argsort(lowering)[:half], *np.argsort(saving)[:half]])

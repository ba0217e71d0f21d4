"""How much each level of each choice hurts: probed alone, then fitted to all that was seen.

Choices that interact, as whole blocks do, are probed in a greedy order instead: the one that hurts
least goes, the rest are probed again without it. Each is then charged what it adds to those before.

Where there may not be the time for each alone, all choices of one kind are probed together, and
those that are not reached share what that says. Whatever removes weights has a part of its
divergence from batch norms that are estimated anew, however little is removed: where whole blocks
can go, that is paid once, so that no choice is charged for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from autocompress.policy.registry import by_knob
from autocompress.policy.space import Assignment, Choice, Space

_GROWTH = 2.0
"""KL grows about quadratically with the share removed; used between probed levels."""
_HEAVY = 3.0
"""Nats; heavier damage tells nothing about what is worth choosing."""
_LOOKS = 4
"""Interacting choices that are probed again at each step: what hurt least when last probed."""
_AHEAD = 16
"""Choices whose probes are told ahead at once."""
_LATEST = 2000
"""Of what was screened, the last so many are fitted to; long searches screen ten thousands."""
_NEVER = 1e3
"""Nats; above any divergence, and small enough not to drown the rest in rounding."""


class Sensitivity:
    """Additive model of the KL divergence over levels.

    Args:
        space: of the assignments.
        screen: KL of an assignment, in nats.
        ahead: told what will be screened next, so that it may be done in one go.
        foretold: KL of an assignment on other weights, or ``None``; it stands in for a probe that
            no time is left for, and is never fitted to.

    Attributes:
        losses: per choice, nats that each level adds.
        order: positions of the choices that interact, in the order in which they are best taken.
    """

    def __init__(
        self,
        space: Space,
        screen: Callable[[Assignment], float],
        ahead: Callable[[Sequence[Assignment]], object] = lambda assignments: None,
        foretold: Callable[[Assignment], float | None] = lambda assignment: None,
    ) -> None:
        self.space = space
        self.screen = screen
        self.ahead = ahead
        self.foretold = foretold
        self.losses: list[NDArray[np.float64]] = []
        self.order: tuple[int, ...] = ()
        self._prior: list[NDArray[np.float64]] = []
        self._seen: dict[Assignment, float] = {}
        self._floors = [0.0, 0.0]

    @property
    def probes(self) -> int:
        """How many policies ``probe`` screens, those of choices that interact left out."""
        return sum(len(_probes(len(c.levels))) for c in self.space.choices if c.of_layers)

    def probe(
        self,
        keep_going: Callable[[], bool],
        first: Sequence[int] | None = None,
        *,
        hurried: bool = False,
    ) -> None:
        """Screen single choices, all others at their mildest, and fill in between.

        Args:
            keep_going: asked before each probe; unprobed choices take what was foretold of them,
                their share of what all of their kind do together, or the mean of the others.
            first: all choices, in the order in which they are probed.
            hurried: begin with all choices of each kind together, as there may not be the time to
                probe each alone.
        """
        choices = self.space.choices
        probed: list[dict[int, float] | None] = [
            None if c.of_layers else dict.fromkeys(range(len(c.levels)), 0.0) for c in choices
        ]
        kinds = self._kinds if hurried else {}
        together = {k: self._screened(self._all_of(p)) for k, p in kinds.items() if keep_going()}
        order = list(range(len(choices)) if first is None else first)
        for done, i in enumerate(order):
            if done % _AHEAD == 0 and keep_going():
                self.ahead([one for j in order[done : done + _AHEAD] for one in self._alone(j)])
            found: dict[int, float] = {}
            for one in self._alone(i):
                if not keep_going():
                    probed[i] = probed[i] or self._foretold(i)
                    break
                found[one[i]] = self._screened(one)
            else:
                probed[i] = found or probed[i]
        floors = [self._floor(probed, removing=removing) for removing in (False, True)]
        self._floors = floors
        known = [max(p.values()) for p in probed if p]
        typical = float(np.mean(known)) if known else 1.0
        self.losses = []
        for i, (choice, found_of) in enumerate(zip(choices, probed, strict=True)):
            floor, top = floors[self._removing[i]], len(choice.levels) - 1
            if not choice.of_layers:
                self.losses.append(_apart(choice))
                continue
            if found_of:
                points = {k: max(v - floor, 1e-6) for k, v in found_of.items()}
            elif choice.kind in together:
                count = len(self._kinds[choice.kind])
                points = {top: min(max(together[choice.kind] - floor, 1e-6) / count, _HEAVY)}
            else:
                points = {top: typical}
            self.losses.append(_filled(len(choice.levels), points))
        self._probe_together(floors[True], keep_going)
        self._prior = [loss.copy() for loss in self.losses]

    @cached_property
    def _removing(self) -> list[bool]:
        """Of each choice, whether it removes weights: its networks are repaired."""
        found = [by_knob().get(choice.kind) for choice in self.space.choices]
        return [technique is not None and technique.removes for technique in found]

    @cached_property
    def _kinds(self) -> dict[str, list[int]]:
        """Kinds of which there are several choices that do not interact, with their positions."""
        found: dict[str, list[int]] = {}
        for i, choice in enumerate(self.space.choices):
            if choice.of_layers and not _interacts(choice):
                found.setdefault(choice.kind, []).append(i)
        return {kind: places for kind, places in found.items() if len(places) > 1}

    def _all_of(self, places: Sequence[int]) -> Assignment:
        """Some choices at their hardest, all others at their mildest."""
        hardest, some = self.space.hardest, set(places)
        return tuple(level if i in some else 0 for i, level in enumerate(hardest))

    def _floor(self, probed: Sequence[Mapping[int, float] | None], *, removing: bool) -> float:
        """Nats that any change costs, however small: the least of what was probed."""
        pairs = zip(probed, self._removing, strict=True)
        found = [v for p, own in pairs if p and own is removing for v in p.values() if v > 0]
        return min(found, default=0.0)

    def _alone(self, place: int) -> list[Assignment]:
        """The assignments that probe one choice, all others at their mildest."""
        choices = self.space.choices
        if not choices[place].of_layers:
            return []
        levels = _probes(len(choices[place].levels))
        return [tuple(x if j == place else 0 for j in range(len(choices))) for x in levels]

    def _probe_together(self, floor: float, keep_going: Callable[[], bool]) -> None:
        """Find the order of the choices that interact, and what each adds to those before it.

        Args:
            floor: nats that any change costs, however small.
            keep_going: asked before each step; the rest then stand in the order of what they did
                when they were last probed.
        """
        choices = self.space.choices
        left = [i for i, c in enumerate(choices) if _interacts(c)]
        if len(left) < 2:
            return
        adds = {i: float(self.losses[i][-1]) for i in left}
        order: list[int] = []
        added: list[float] = []
        current = [0] * len(choices)
        total = floor
        while left and total < _HEAVY and keep_going():
            looks = sorted(left, key=adds.__getitem__)[:_LOOKS]
            for i in looks if order else ():
                one = (*current[:i], len(choices[i].levels) - 1, *current[i + 1 :])
                adds[i] = self._screened(one) - total
            best = min(looks, key=adds.__getitem__)
            left.remove(best)
            order.append(best)
            added.append(adds[best])
            current[best] = len(choices[best].levels) - 1
            total += adds[best]
        rest = sorted(left, key=adds.__getitem__)
        self.order = (*order, *rest)
        # what comes later is never cheaper, or it would have gone before
        steps = np.maximum.accumulate([max(a, 1e-6) for a in (*added, *(adds[i] for i in rest))])
        for i, step in zip(self.order, steps, strict=True):
            self.losses[i] = _filled(len(choices[i].levels), {len(choices[i].levels) - 1: step})

    def _foretold(self, place: int) -> dict[int, float] | None:
        """What other weights said of a choice, if they were asked."""
        found = {one[place]: self.foretold(one) for one in self._alone(place)}
        known = {level: kl for level, kl in found.items() if kl is not None}
        return known if len(known) == len(found) else None

    def _screened(self, assignment: Assignment) -> float:
        found = self.screen(assignment)
        self._seen[assignment] = found
        return found

    def observe(self, assignment: Assignment, kl: float) -> None:
        """Remember a screened assignment for the next fit."""
        self._seen[assignment] = kl

    def seen(self, assignment: Assignment) -> float | None:
        """What an assignment was screened at, if it was."""
        return self._seen.get(assignment)

    def refit(self) -> None:
        """Fit all levels to what was screened, near the probed values, never negative."""
        # heavy damage would drown the rest
        place = self.space.student_place
        rows = [
            (a, kl)
            for a, kl in islice(reversed(self._seen.items()), _LATEST)
            if kl < _HEAVY and (place is None or not a[place])
        ]
        if len(rows) < 8:
            return
        starts = np.concatenate([[0], np.cumsum([len(c.levels) for c in self.space.choices])])
        levels = np.array([assignment for assignment, _ in rows])
        matrix = np.zeros((len(rows), starts[-1] + 1))
        matrix[np.arange(len(rows))[:, None], starts[:-1] + levels] = levels > 0
        if self.order:  # else nearly every row would have it, and it would take losses of choices
            matrix[:, -1] = (levels[:, self._removing] > 0).any(axis=1)
        target = np.array([kl for _, kl in rows])
        found = _fitted(matrix, target, np.concatenate([*self._prior, [self._floors[True]]]))
        self.losses = []
        for i, choice in enumerate(self.space.choices):
            if choice.replaces:
                self.losses.append(_apart(choice))
                continue
            loss = found[starts[i] : starts[i + 1]].copy()
            loss[0] = 0.0
            self.losses.append(np.maximum.accumulate(loss))

    def predict(self, assignment: Assignment) -> float:
        """The model's KL, but for what batch norms estimated anew cost in any case."""
        return float(sum(t[level] for t, level in zip(self.losses, assignment, strict=True)))


def _fitted(
    matrix: NDArray[np.float64], target: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares with bounds at zero, each unknown drawn to a prior.

    Args:
        matrix: ``(rows, unknowns)``, of zeros and ones.
        target: ``(rows,)``; the smaller a value, the more exactly it is met.
        prior: ``(unknowns,)``, what the unknowns are without any row.
    """
    from scipy.optimize import fmin_l_bfgs_b

    weight, anchor = 1.0 / (0.1 + target), 0.3 / (0.02 + prior)
    used = matrix.any(axis=0)
    # in units in which each is as sure of its prior as any other
    scaled, aims = matrix[:, used] * (weight[:, None] / anchor[used]), target * weight
    if len(scaled) > scaled.shape[1]:  # as many rows as there are unknowns say the same
        left = np.asarray(np.linalg.qr(np.c_[scaled, aims], mode="r"))
        scaled, aims = left[:, :-1], left[:, -1]
    start = prior[used] * anchor[used]

    def squares(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        off, away = scaled @ x - aims, x - start
        return 0.5 * float(off @ off + away @ away), scaled.T @ off + away

    bounds = [(0.0, None)] * len(start)
    found, *_ = fmin_l_bfgs_b(squares, start, bounds=bounds, factr=1e4, pgtol=1e-6, maxiter=500)
    out = prior.copy()
    out[used] = found / anchor[used]
    return out


def _interacts(choice: Choice) -> bool:
    technique = by_knob().get(choice.kind)
    return technique is not None and technique.interacts


def _apart(choice: Choice) -> NDArray[np.float64]:
    """Distillation costs nothing before training; an untrained student is never worth it."""
    losses = np.zeros(len(choice.levels))
    if choice.replaces:
        losses[1:] = _NEVER
    return losses


def _probes(levels: int) -> list[int]:
    """The hardest level, and one in the middle where there are many."""
    return [levels - 1] if levels < 4 else [levels // 2, levels - 1]


def _filled(levels: int, known: dict[int, float]) -> NDArray[np.float64]:
    """Losses of all levels from some: a power law from zero, then straight lines."""
    points = {0: 0.0, **known}
    first = min(k for k in points if k > 0) if len(points) > 1 else 0
    out = np.zeros(levels)
    ordered = sorted(points)
    for level in range(levels):
        if level <= first and first:
            out[level] = points[first] * (level / first) ** _GROWTH
        else:
            out[level] = np.interp(level, ordered, [points[k] for k in ordered])
    return out

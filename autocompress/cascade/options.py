"""Every pair of members with every threshold, and triples, as a front of latency and score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cascade.chain import Chain, Member, together
from autocompress.cascade.confidence import OF_ONE, Confidence, Floats

Score = Callable[[Floats, Floats], Floats]
"""From losses and gains, of any shape, to what is best when it is large."""

SHORT_LIST = 8
"""Members that triples are made of: those of the best pairs."""
LEVELS = 64
"""Thresholds of each stage of a triple, spread evenly over the inputs; of fewer inputs, all."""


@dataclass(frozen=True, slots=True)
class Option:
    """A chain and what it does on the inputs that it was looked for on.

    Args:
        chain: of members.
        latency_ms: mean over the inputs.
        score: as asked.
    """

    chain: Chain
    latency_ms: float
    score: float


class Front:
    """Options of which none is both as quick and as good as another."""

    def __init__(self) -> None:
        self._latency: Floats = np.empty(0)
        self._score: Floats = np.empty(0)
        self._chains: list[Chain] = []

    def offer(
        self, latency: Floats, score: Floats, chain: Callable[[NDArray[Any]], list[Chain]]
    ) -> None:
        """Take in what is not beaten.

        Args:
            latency, score: ``(P,)``.
            chain: the chains of some places, which are made only where they are needed.
        """
        place = np.searchsorted(self._latency, latency, side="right")
        best = np.concatenate([[-np.inf], self._score])[place]
        (kept,) = np.nonzero(score > best)
        if not len(kept):
            return
        all_ms = np.concatenate([self._latency, latency[kept]])
        all_scores = np.concatenate([self._score, score[kept]])
        order = np.lexsort((-all_scores, all_ms))
        so_far = np.maximum.accumulate(np.concatenate([[-np.inf], all_scores[order]]))
        order = order[all_scores[order] > so_far[:-1]]
        known = len(self._chains)
        new = chain(kept[order[order >= known] - known])
        fresh = iter(new)
        self._chains = [self._chains[i] if i < known else next(fresh) for i in order]
        self._latency, self._score = all_ms[order], all_scores[order]

    def options(self) -> list[Option]:
        """The quickest first."""
        each = zip(self._chains, self._latency, self._score, strict=True)
        return [Option(chain, float(ms), float(score)) for chain, ms, score in each]


@dataclass(frozen=True)
class _Counts:
    """Losses and gains against the uncompressed model, ``(members, N)``, and latencies.

    ``added_ms[i, j]`` is what ``j`` adds where ``i`` has been asked just before.
    """

    losses: NDArray[np.bool_]
    gains: NDArray[np.bool_]
    latency_ms: Floats
    added_ms: Floats

    @classmethod
    def of(cls, members: Sequence[Member], baseline: NDArray[np.bool_]) -> _Counts:
        right = np.stack([m.right for m in members])
        latency = np.array([m.latency_ms for m in members])
        added = np.array([[m.added_ms(before) for m in members] for before in members])
        return cls(baseline & ~right, ~baseline & right, latency, added)


def best_options(
    members: Sequence[Member], baseline: NDArray[np.bool_], score: Score, levels: int = LEVELS
) -> list[Option]:
    """Single members, pairs, triples and agreeing pairs that no other option beats.

    Pairs are looked through whole: every two members, every confidence, every threshold. Triples
    and agreeing pairs are made of the members of the best pairs, triples with at most ``levels``
    thresholds a stage.

    Args:
        members: with the inputs to look at.
        baseline: whether the uncompressed model is right, ``(N,)``.
        score: what is to be large.
        levels: see above.

    Returns:
        The quickest first, so that the best comes last.
    """
    counts, front = _Counts.of(members, baseline), Front()
    for i, member in enumerate(members):
        if member.exit is None:  # a part alone is no model of the run
            _offer_single(front, counts, i, score)
    for i, member in enumerate(members):
        slower = np.flatnonzero(counts.latency_ms > member.latency_ms)
        for kind in OF_ONE:
            _offer_first(front, counts, (i,), member.sure[kind], kind, slower, score)
    named = short_list(front.options(), members)
    best = sorted(named, key=lambda i: members[i].latency_ms)
    for three in combinations(best, 3):
        for kind in OF_ONE:
            _offer_triple(front, counts, members, three, kind, score, levels)
    whole = [i for i in best if members[i].exit is None]
    for first, second in combinations(whole, 2):
        slower = np.array([i for i in best if counts.latency_ms[i] > members[second].latency_ms])
        sure = together(members[first], members[second])
        if len(slower):
            pair = (first, second)
            _offer_first(front, counts, pair, sure, "agreement", slower, score)
    return front.options()


def short_list(
    options: Iterable[Option], members: Sequence[Member], most: int = SHORT_LIST
) -> list[int]:
    """The members that occur most often, then those that are right most often."""
    found = Counter(i for option in options for i in option.chain.members)
    by_right = sorted(range(len(members)), key=lambda i: -int(members[i].right.sum()))
    return list(dict.fromkeys([*(i for i, _ in found.most_common()), *by_right]))[:most]


def threshold(above: float, below: float) -> float:
    """A value between two confidences, that the surer of them reaches and the other does not."""
    middle = (above + below) / 2
    return float(middle if middle > below else above)


def _offer_single(front: Front, counts: _Counts, i: int, score: Score) -> None:
    losses, gains = (np.array([c[i].sum()], float) for c in (counts.losses, counts.gains))
    chain = Chain((i,), "probability", ())
    front.offer(counts.latency_ms[[i]], score(losses, gains), lambda _: [chain])


def _offer_first(
    front: Front,
    counts: _Counts,
    first: tuple[int, ...],
    sure: Floats,
    kind: Confidence,
    slower: NDArray[Any],
    score: Score,
) -> None:
    """One first stage before each of several last members, at every threshold."""
    count = len(sure)
    order = np.argsort(-sure, kind="stable")
    ranked = sure[order]
    # inputs answered at the first stage: between different confidences only, and not all of them
    (cuts,) = np.nonzero(ranked[:-1] > ranked[1:])
    if not len(cuts) or not len(slower):
        return
    losses, gains = (
        _answered(found[first[-1]][order], found[slower][:, order], cuts)
        for found in (counts.losses, counts.gains)
    )
    handed = (count - 1 - cuts) / count
    later = counts.latency_ms if kind == "agreement" else counts.added_ms[first[0]]
    latency = counts.latency_ms[list(first)].sum() + np.outer(later[slower], handed)
    found = score(losses, gains)
    # within a row more answered is quicker: keep what is better than all that is quicker
    after = np.maximum.accumulate(found[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate(
        [found[:, :-1] > after[:, 1:], np.ones((len(found), 1), dtype=bool)], axis=1
    )
    rows, columns = np.nonzero(best)

    def chains(kept: NDArray[Any]) -> list[Chain]:
        return [
            Chain(
                (*first, int(slower[rows[p]])),
                kind,
                (threshold(*ranked[cuts[columns[p]] :][:2]),),
            )
            for p in kept
        ]

    front.offer(latency[rows, columns], found[rows, columns], chains)


def _answered(first: NDArray[np.bool_], rest: NDArray[np.bool_], cuts: NDArray[Any]) -> Floats:
    """Counts where the first answers up to each cut and the others all after it."""
    begun = np.cumsum(first)[cuts]
    ends = np.cumsum(rest, axis=1, dtype=np.int32)
    return np.asarray(begun + ends[:, -1:] - ends[:, cuts], dtype=np.float64)


def _offer_triple(
    front: Front,
    counts: _Counts,
    members: Sequence[Member],
    three: tuple[int, ...],
    kind: Confidence,
    score: Score,
    levels: int,
) -> None:
    """Three members at all combinations of their thresholds."""
    a, b, c = three
    edges = [_edges(members[i].sure[kind], levels) for i in (a, b)]
    if not all(map(len, edges)):
        return
    # the first threshold that each input reaches; one more where it reaches none
    bins = [np.searchsorted(-e, -members[i].sure[kind]) for e, i in zip(edges, (a, b), strict=True)]
    shape = (len(edges[0]) + 1, len(edges[1]) + 1)
    flat = bins[0] * shape[1] + bins[1]

    def tally(weights: Any) -> Floats:
        found = np.bincount(flat, weights, shape[0] * shape[1])
        return np.asarray(found.reshape(shape), dtype=np.float64)

    def answered(which: NDArray[np.bool_]) -> Floats:
        first = np.cumsum(tally(which[a]).sum(axis=1))[:-1, None]
        second = np.cumsum(_left(tally(which[b])), axis=1)[:, :-1]
        last = _left(tally(which[c]))
        third = last.sum(axis=1, keepdims=True) - np.cumsum(last, axis=1)[:, :-1]
        return np.asarray(first + second + third)

    here = _left(tally(None))
    to_second = here.sum(axis=1, keepdims=True)
    to_third = to_second - np.cumsum(here, axis=1)[:, :-1]
    count = len(flat)
    to_b, to_c = counts.added_ms[a, b], counts.added_ms[b, c]
    latency = counts.latency_ms[a] + (to_b * to_second + to_c * to_third) / count
    found = score(answered(counts.losses), answered(counts.gains))

    def chains(kept: NDArray[Any]) -> list[Chain]:
        places = np.unravel_index(kept, found.shape)
        pairs = zip(*places, strict=True)
        return [Chain(three, kind, (float(edges[0][i]), float(edges[1][j]))) for i, j in pairs]

    front.offer(latency.ravel(), found.ravel(), chains)


def _left(table: Floats) -> Floats:
    """Of inputs by the thresholds that they reach: those that the first stage hands on, for each of
    its thresholds."""
    after = np.cumsum(table[::-1], axis=0)[::-1]
    return after[1:]


def _edges(sure: Floats, levels: int) -> Floats:
    """Thresholds, the highest first: all that tell inputs apart, or as many as asked."""
    ranked = np.sort(sure)[::-1]
    (cuts,) = np.nonzero(ranked[:-1] > ranked[1:])
    if len(cuts) > levels:
        cuts = cuts[np.linspace(0, len(cuts) - 1, levels).round().astype(int)]
    return np.array([threshold(ranked[i], ranked[i + 1]) for i in cuts])

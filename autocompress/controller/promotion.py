"""Who is trained, and who is trained for longer: cost bands, lower bounds, rank correlation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from autocompress.controller.feasibility import ONE_SIDED_95
from autocompress.results.difference import difference
from autocompress.results.rank import rank_correlation
from autocompress.results.trial import Trial


def by_band(ranked: Sequence[Trial], cost: str, count: int) -> list[Trial]:
    """The first of a ranking, then the first of each other cost band, then the rest in order.

    Args:
        ranked: the best first.
        cost: metric whose range is split evenly into ``count`` bands, the most expensive first.
        count: at most so many are chosen.
    """
    chosen = list(ranked[:1])
    values = [t.measurement[cost] for t in ranked if t.measurement]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    bands: dict[int, Trial] = {}
    for trial in ranked:
        assert trial.measurement is not None
        share = (trial.measurement[cost] - low) / (high - low) if high > low else 0.0
        bands.setdefault(min(count - 1, int(share * count)), trial)
    for band in sorted(bands, reverse=True):
        if bands[band] not in chosen and len(chosen) < count:
            chosen.append(bands[band])
    return chosen + [t for t in ranked if t not in chosen][: count - len(chosen)]


def worst_case(trial: Trial) -> float:
    """The quality as a loss (less is better), plus 1.64 standard errors."""
    assert trial.measurement is not None
    found = trial.measurement
    return found.quality.loss(found.score) + ONE_SIDED_95 * found.score_error


def in_doubt(done: Sequence[Trial]) -> list[Trial]:
    """Feasible trials that may still be the best, the least worst case first.

    A trial is out when the leader is ahead of it by more than 1.64 standard errors of their
    difference, on the same samples where both records hold each of them.
    """
    usable = [t for t in done if t.feasible and t.measurement is not None]
    usable.sort(key=lambda t: (worst_case(t), t.number))
    if not usable:
        return []
    lead = usable[0].measurement
    assert lead is not None
    left = usable[:1]
    for trial in usable[1:]:
        assert trial.measurement is not None
        gap = difference(lead, trial.measurement)
        if gap.gain <= ONE_SIDED_95 * gap.stderr:
            left.append(trial)
    return left


def promoted(done: Sequence[Trial], before: Mapping[int, float], cost: str) -> list[Trial]:
    """Trials of a rung that the next one trains for twice as long.

    How many depends on how well untrained quality foretold the trained one: with a rank
    correlation of 1 half of the rung goes on, as in successive halving; with none, or where three
    pairs are not at hand, all that are still in doubt.

    Args:
        done: the rung's trials.
        before: trial number to the untrained quality of its policy.
        cost: metric whose bands are all to be kept where the number allows it.

    Returns:
        Fewer than two when the order is settled: training longer would decide nothing.

    References:
        Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter
        Optimization, AISTATS 2016 (successive halving).
    """
    doubtful = in_doubt(done)
    if len(doubtful) < 2:
        return doubtful
    pairs = [
        (before[t.number], t.measurement.score)
        for t in done
        if t.number in before and t.measurement is not None
    ]
    forecast = max(0.0, rank_correlation(pairs) or 0.0)
    limit = max(2, math.ceil(len(done) * (1 - forecast / 2)))
    return by_band(doubtful, cost, limit)

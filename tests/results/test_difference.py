"""Paired differences against the bootstrap of `quality.score`, and against repeated draws."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.quality.score import Accuracy, paired
from autocompress.results.difference import HITS, difference, pack_hits
from autocompress.results.metric import Measurement


def record(correct: NDArray[np.bool_], split: str = "val", packed: bool = True) -> Measurement:
    value, count = float(correct.mean()), len(correct)
    context = {"split": split, "images": count}
    if packed:
        context[HITS] = pack_hits(correct)
    return Measurement(
        {"accuracy": value}, {"accuracy": (value * (1 - value) / count) ** 0.5}, context
    )


def answers(count: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two models that agree on nine images of ten."""
    rng = np.random.default_rng(seed)
    first = rng.random(count) < 0.9
    return first, np.where(rng.random(count) < 0.1, rng.random(count) < 0.5, first)


@pytest.mark.parametrize("count", [1001, 5000])  # also one that fills no whole bytes
def test_the_interval_is_that_of_the_paired_bootstrap(count: int) -> None:
    first, second = answers(count, seed=count)
    found = difference(record(first), record(second))
    wanted = paired(
        Accuracy(first.mean(), 0.0, count, first), Accuracy(second.mean(), 0.0, count, second)
    )
    assert found.paired
    assert found.points == pytest.approx(100 * wanted.difference)
    width = 100 * (wanted.high - wanted.low)
    assert found.high - found.low == pytest.approx(width, rel=0.1)


def test_the_error_is_the_spread_of_repeated_draws() -> None:
    """400 draws: the estimate of a spread is good to 3.5 %, so 15 % is four of its errors."""
    found = [difference(*map(record, answers(2000, seed))) for seed in range(400)]
    spread = np.std([f.points for f in found])
    assert np.mean([f.stderr for f in found]) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(
    "other",
    [
        lambda c: record(c, packed=False),
        lambda c: record(c, split="test"),
        lambda c: record(c[:500]),
    ],
)
def test_without_the_same_images_the_two_are_independent(other: object) -> None:
    first, second = answers(1000, seed=3)
    a, b = record(first), other(second)  # type: ignore[operator]  # a lambda of the list above
    found = difference(a, b)
    assert not found.paired
    wanted = 100 * (a.spread["accuracy"] ** 2 + b.spread["accuracy"] ** 2) ** 0.5
    assert found.stderr == pytest.approx(wanted)
    assert found.stderr > difference(record(first), record(second)).stderr


def test_equal_answers_differ_by_nothing() -> None:
    first, _ = answers(1000, seed=4)
    found = difference(record(first), record(first))
    assert (found.points, found.low, found.high) == (0.0, 0.0, 0.0)

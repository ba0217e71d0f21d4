"""Turns of several models on one sequence, told by what each call was given."""

from __future__ import annotations

import time

import numpy as np
import pytest

from autocompress.cascade.sequence import BLOCK, SequenceTimes, time_sequence


def test_every_model_gets_every_input_in_order_and_only_one_call_a_turn_is_not_timed() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    calls = [seen[name].append for name in seen]
    count = 2 * BLOCK + 7
    chunks = [list(range(BLOCK + 10)), list(range(BLOCK + 10, count))]
    times = time_sequence(calls, chunks, max_seconds=1e9)
    assert times.ms.shape == (count, 3)
    blocks = [chunk[i : i + BLOCK] for chunk in chunks for i in range(0, len(chunk), BLOCK)]
    wanted = [x for block in blocks for x in (block[0], *block)]
    assert all(found == wanted for found in seen.values())


def test_the_slower_model_is_found_slower() -> None:
    def slow(_: int) -> None:
        time.sleep(0.002)

    times = time_sequence([slow, lambda _: None], [range(2 * BLOCK)])
    assert (times.ms[:, 0] >= 2).all()


def test_it_ends_in_time_but_times_one_block() -> None:
    times = time_sequence([lambda _: None], [range(3 * BLOCK)], max_seconds=0)
    assert len(times.ms) == BLOCK


def test_figures_are_numpys() -> None:
    rng = np.random.default_rng(0)
    ms = np.stack([rng.gamma(2, 1, 1000), rng.gamma(2, 2, 1000)], axis=1)
    times = SequenceTimes(ms)
    told = times.told(1)
    assert told["mean_ms"] == pytest.approx(ms[:, 1].mean())
    assert told["p99_ms"] == pytest.approx(np.quantile(ms[:, 1], 0.99))
    assert told["worst_ms"] == ms[:, 1].max()
    ratio, low, high = times.ratio(1)
    assert ratio == pytest.approx(ms[:, 1].mean() / ms[:, 0].mean())
    # of independent times the delta method tells about the same
    each = ms[:, 1] - ratio * ms[:, 0]
    wide = 2 * 1.96 * each.std() / ms[:, 0].mean() / np.sqrt(1000)
    assert low < ratio < high
    assert high - low == pytest.approx(wide, rel=0.4)

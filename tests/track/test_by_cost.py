"""A front by another cost than the study's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_trials import BASE, trial, view

from autocompress.errors import InputError
from autocompress.results.metric import Measurement
from autocompress.track.by_cost import by_cost

MEMORY = {"peak_memory_bytes": 2e7}


def more(found: Measurement | None, values: dict[str, float]) -> Measurement:
    assert found is not None
    return Measurement({**found.values, **values}, found.spread)


def test_a_cost_that_no_trial_has_is_refused_with_what_to_do() -> None:
    """Verification measures memory of the answer alone, beside the uncompressed model."""
    trials = [trial(0, 0.85, 0.9), trial(1, 0.87, 0.95)]
    run = view(trials)
    run = replace(run, baseline=more(BASE, MEMORY))
    with pytest.raises(InputError, match="of no trial that it compared") as told:
        by_cost(run, "memory")
    assert "--budget 'memory<=1x'" in str(told.value)
    with pytest.raises(InputError, match="did not measure energy; it has latency, memory"):
        by_cost(run, "energy")


def test_trials_that_have_the_cost_make_the_front() -> None:
    least = {"peak_memory_bytes": 1e7}
    trials = [trial(0, 0.85, 0.9), trial(1, 0.87, 0.95), trial(2, 0.86, 0.8)]
    trials = [
        replace(t, measurement=more(t.measurement, v))
        for t, v in zip(trials, (least, MEMORY, {}), strict=True)
    ]
    run = replace(view(trials), baseline=more(BASE, MEMORY))
    assert [t.number for t in by_cost(run, "memory").front] == [0, 1]

"""What is asked of one search, on the command line or in a call, laid over its study."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.commands.overrides import overrides
from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.run.given import given_study
from autocompress.run.study import read_study

STUDY = read_study(
    {
        "name": "x",
        "model": {"factory": "a:b"},
        "data": {"factory": "a:b"},
        "budget": ["latency<=0.5x", "size<=1MB", "latency_ms<=3"],
        "search": {"trials": 40, "timeout_s": 70.0, "seed": 5},
    }
)


def test_a_latency_takes_the_place_of_every_limit_on_it() -> None:
    assert overrides(STUDY).budget == STUDY.budget
    assert overrides(STUDY, latency_ms=2.0).budget == ("size<=1MB", "latency<=2.0ms")
    asked = ["macs<=50%", " latency <= 1us", "params<=1M"]
    assert overrides(STUDY, budget=asked).budget == tuple(asked)
    found = overrides(STUDY, budget=asked, latency_ms=0.25).limits()
    assert found == Budget("macs<=0.5x", "params<=1000000", latency_ms=0.25)


@pytest.mark.parametrize("wrong", ["latencyy<=1", "latency=1", "size<=1ms"])
def test_a_limit_that_cannot_be_read_is_named_beside_a_latency(wrong: str) -> None:
    with pytest.raises(InputError):
        overrides(STUDY, budget=[wrong], latency_ms=2.0)


@pytest.mark.parametrize(
    ("asked", "ends"),
    [
        ({}, (40, 70.0, None)),
        ({"trials": 7}, (7, None, None)),
        ({"timeout": "20m"}, (None, None, 1200.0)),
        ({"trials": 7, "timeout": "90"}, (7, None, 90.0)),
        ({"seed": 1, "sampler": "tpe"}, (40, 70.0, None)),
    ],
)
def test_a_count_is_not_cut_short_by_the_clock_of_the_study(
    asked: dict[str, Any], ends: tuple[int | None, float | None, float | None]
) -> None:
    study = overrides(STUDY, **asked)
    search = study.search
    assert (search.trials, search.timeout_s, study.timeout_s) == ends
    assert (search.seed, search.sampler) == (asked.get("seed", 5), asked.get("sampler", "guided"))


@pytest.mark.parametrize(
    ("search", "ends"),
    [
        (None, (60, None)),
        ({"seed": 3}, (60, None)),
        ({"trials": 7}, (7, None)),
        ({"timeout_s": 600}, (None, 600.0)),
        ({"trials": 7, "timeout_s": 600}, (7, 600.0)),
    ],
)
def test_a_call_ends_as_the_command_line_does(
    search: dict[str, Any] | None, ends: tuple[int | None, float | None]
) -> None:
    found = given_study("x", None, search=search).search
    assert (found.trials, found.timeout_s) == ends


@pytest.mark.parametrize(
    ("search", "ends"),
    [(None, (None, None)), ({"trials": 7}, (7, None)), ({"timeout_s": 60}, (None, 60.0))],
)
def test_a_call_with_a_time_for_the_whole_counts_no_trials(
    search: dict[str, Any] | None, ends: tuple[int | None, float | None]
) -> None:
    study = given_study("x", None, search=search, timeout_s=600)
    assert (study.search.trials, study.search.timeout_s) == ends
    assert study.timeout_s == 600


def test_a_budget_that_is_handed_over_keeps_all_its_digits() -> None:
    budget = Budget(f"latency<={1 / 3}x", macs=41_234_567, size_bytes=1e6)
    study = given_study("x", budget)
    assert study.limits() == budget
    assert study.budget[1:] == ("macs<=41.234567M", "size<=1MB")

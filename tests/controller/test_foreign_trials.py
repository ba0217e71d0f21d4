"""Damaged and hostile records in a shared storage: each is left out, the good ones count."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from analytic import AnalyticEvaluator, make_space

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import run_search
from autocompress.controller.samplers import make_proposer
from autocompress.controller.shared_trials import SharedTrials
from autocompress.execute.local import InProcessExecutor
from autocompress.policy.budget import Budget
from autocompress.results.metric import ACCURACY, LATENCY
from autocompress.results.trial import Trial, TrialState
from autocompress.track.journal import Journal, read_trials

COMPLETE = optuna.trial.TrialState.COMPLETE
Change = Callable[[dict[str, Any]], Any]


def changed(*path: str, to: Any) -> Change:
    """Another value at one place of a trial."""

    def change(trial: dict[str, Any]) -> dict[str, Any]:
        place = trial
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return trial

    return change


BAD: dict[str, Change] = {
    "macs alone": changed("measurement", to={"values": {"macs": 1.0}, "spread": {}, "context": {}}),
    "no latency": changed("measurement", "values", to={"accuracy": 0.9, "macs": 1.0}),
    "no size, which the budget limits": changed(
        "measurement", "values", to={"accuracy": 0.9, "latency_ms": 1.0}
    ),
    "an endless figure": changed("measurement", "values", "latency_ms", to=float("inf")),
    "no number": changed("measurement", "values", "accuracy", to=float("nan")),
    "text for a figure": changed("measurement", "values", "accuracy", to="0.9"),
    "a ratio below nothing": changed("measurement", "context", to={"timing": {"ratio": -1.0}}),
    "an endless ratio": changed("measurement", "context", to={"timing": {"ratio": 1e308}}),
    "an unknown layer": changed("policy", to={"layers": {"nolayer": {"prune_ratio": 0.5}}}),
    "another policy": changed("policy", to={"layers": {"l0": {"prune_ratio": 0.125}}}),
    "no policy": changed("policy", to=[]),
    "nothing measured": changed("measurement", to=None),
    "another phase": changed("phase", to={"kind": "verify", "epochs": 0, "rung": 0}),
    "failed": changed("state", to="FAILED"),
    "another direction": changed(
        "measurement",
        "metrics",
        to=[{"name": "accuracy", "unit": "fraction of 1", "goal": "minimize"}],
    ),
    "steering signs": changed("state", to="\x1b[2J\n"),
    "a list": lambda trial: [trial],
    "no JSON": lambda trial: None,
}
LEVELS = (1, 2, 3)


def shared(tmp_path: Path, driver: str) -> SharedTrials:
    space = make_space(3, 4)
    url = f"sqlite:///{tmp_path}/s.db"
    return SharedTrials(url, "s", space, (ACCURACY, LATENCY), driver, {"data": "d"})


def context(mine: SharedTrials, sinks: list[Any], trials: int = 12) -> Context:
    evaluator = AnalyticEvaluator(3)
    return Context(
        mine.space,
        evaluator,
        InProcessExecutor(evaluator),
        Budget("latency<=0.9x", "size<=1x"),
        SearchConfig(sampler="random", trials=trials, seed=0, starts=False),
        sinks,
        shared=mine,
    )


def add(mine: SharedTrials, levels: tuple[int, ...], change: Change | None = None) -> Trial:
    """A complete trial of somebody who writes to the storage directly."""
    policy = mine.space.decode(levels)
    trial = Trial(0, policy, measurement=AnalyticEvaluator(3).evaluate(policy))
    told = trial.as_dict() if change is None else change(trial.as_dict())
    text = "{" if told is None else json.dumps(told)
    about = {"driver": "x", "policy": policy.untrained_digest, "trial": text}
    mine.study.add_trial(mine._frozen(levels, COMPLETE, about, [0.9, 1.0]))
    return trial


@pytest.mark.parametrize("how", BAD)
def test_a_bad_trial_is_left_out_and_the_good_ones_of_its_batch_count(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger, mine = shared(tmp_path, "x"), shared(tmp_path, "one")
    good = [add(stranger, (0, 0, 1))]
    add(stranger, LEVELS, BAD[how])
    good.append(add(stranger, (0, 1, 0)))
    with Journal(tmp_path / "run") as journal:
        own = context(mine, [journal])
        found = own.news()
        assert [t.policy for t in found] == [t.policy for t in good]
        assert [t.number for t in found] == [0, 1]
        told = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
        assert len(told) == 1
        assert told[0].isprintable()
        mine._looked = 0.0
        assert own.news() == []
        result = run_search(own, make_proposer(own))
    assert result.trials
    kept = read_trials(tmp_path / "run")
    assert all(
        t.measurement is not None and "accuracy" in t.measurement for t in kept if t.feasible
    )
    assert len([r for r in caplog.records if "left out" in r.getMessage()]) == 1
    assert "goes on alone" not in caplog.text
    # what nobody has evaluated is free
    assert mine.claim(mine.space.decode(LEVELS), LEVELS, 60) or any(
        t.policy == mine.space.decode(LEVELS) for t in kept
    )


def test_a_policy_with_choices_of_no_space_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only its text: what Optuna holds of it, too."""
    stranger, mine = shared(tmp_path, "x"), shared(tmp_path, "one")
    trial = Trial(0, mine.space.decode(LEVELS), measurement=AnalyticEvaluator(3).baseline)
    stranger.study.add_trial(
        optuna.trial.create_trial(
            values=[0.9, 1.0],
            params={"a": 0.5},
            distributions={"a": optuna.distributions.FloatDistribution(0, 1)},
            user_attrs={"trial": json.dumps(trial.as_dict())},
        )
    )
    assert context(mine, []).news() == []
    assert "other choices" in caplog.text


def test_what_drivers_write_themselves_is_taken(tmp_path: Path) -> None:
    """Claimed or not, over the budget or not."""
    theirs = shared(tmp_path, "two")
    search = context(theirs, [theirs], trials=30)
    run_search(search, make_proposer(search))
    done = [t for t in search.ledger.trials if t.state is TrialState.COMPLETE]
    more = replace(done[0], policy=theirs.space.decode((0, 0, 0)))
    theirs.record(more)
    found = context(shared(tmp_path, "one"), []).news()
    assert {t.policy for t in found} == {t.policy for t in [*done, more]}


@pytest.mark.parametrize("until", ["soon", None, [1], float("nan")])
def test_a_claim_without_a_time_holds_nothing(until: Any, tmp_path: Path) -> None:
    stranger, mine = shared(tmp_path, "x"), shared(tmp_path, "one")
    policy = mine.space.decode(LEVELS)
    about = {"driver": "x", "policy": policy.untrained_digest, "until": until}
    running = optuna.trial.TrialState.RUNNING
    stranger._add(stranger._frozen(LEVELS, running, about))
    assert mine.claim(policy, LEVELS, 60)
    assert mine._down_until <= time.monotonic()

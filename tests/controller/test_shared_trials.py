"""Several drivers on one storage: each policy is evaluated once, everybody knows of it."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from analytic import AnalyticEvaluator, make_space

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import run_search
from autocompress.controller.samplers import make_proposer
from autocompress.controller.shared_trials import SharedTrials
from autocompress.errors import InputError
from autocompress.execute.local import InProcessExecutor
from autocompress.policy.budget import Budget
from autocompress.results.metric import ACCURACY, LATENCY
from autocompress.results.trial import Trial, TrialState

IDENTITY = {"architecture": "a", "weights": "w", "data": "d"}
OBJECTIVES = (ACCURACY, LATENCY)


@pytest.fixture(params=["sqlite", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where = {"sqlite": f"sqlite:///{tmp_path}/s.db", "journal": f"journal:{tmp_path}/s.log"}
    return where[request.param]


def shared(url: str, driver: str, layers: int = 3, **identity: str) -> SharedTrials:
    space = make_space(layers, 4)
    return SharedTrials(url, "s", space, OBJECTIVES, driver, {**IDENTITY, **identity})


def search(url: str, driver: str, seed: int, trials: int = 40) -> tuple[list[Trial], list[str]]:
    """A whole search; its trials, and the policies that it evaluated itself."""
    evaluator = AnalyticEvaluator(3)
    context = Context(
        make_space(3, 4),
        evaluator,
        InProcessExecutor(evaluator),
        Budget("latency<=0.9x"),
        SearchConfig(sampler="random", trials=trials, seed=seed, starts=False),
        [],
        shared=(mine := shared(url, driver)),
    )
    context.ledger.sinks = [mine]
    run_search(context, make_proposer(context))
    return context.ledger.trials, [digest for digest, _ in evaluator.evaluated]


def run(url: str, driver: str, seed: int, out: multiprocessing.Queue[object]) -> None:
    trials, evaluated = search(url, driver, seed)
    out.put((driver, [t.policy.untrained_digest for t in trials if t.measurement], evaluated))


def run_drivers(url: str, count: int) -> list[str]:
    """Searches in processes of their own; the policies that they evaluated, one after another."""
    shared(url, "first")  # makes the study
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    drivers = [context.Process(target=run, args=(url, f"d{i}", i, out)) for i in range(count)]
    for driver in drivers:
        driver.start()
    found = [out.get(timeout=120) for _ in drivers]
    for driver in drivers:
        driver.join(60)
        assert driver.exitcode == 0
    return [digest for _, _, own in found for digest in own]


def test_of_drivers_side_by_side_each_policy_is_evaluated_once(url: str) -> None:
    evaluated = Counter(run_drivers(url, 3))
    assert evaluated
    assert max(evaluated.values()) == 1
    study = optuna.load_study(study_name="s", storage=shared(url, "reader")._storage)
    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert Counter(t.user_attrs["policy"] for t in done) == evaluated
    assert all(t.constraints for t in done)


def test_the_dashboard_shows_what_is_over_the_budget(url: str) -> None:
    """Through its own server; each trial has as many constraints as the budget has bounds."""
    trials, _ = search(url, "one", 0, trials=10)
    server = optuna_dashboard.wsgi(shared(url, "reader")._storage)
    environ: dict[str, Any] = {"PATH_INFO": "/api/studies/1"}
    setup_testing_defaults(environ)
    if url.startswith("journal"):
        environ["PATH_INFO"] = "/api/studies/0"
    answered = json.loads(b"".join(server(environ, lambda *status: None)))
    shown = [one["constraints"] for one in answered["trials"] if one["state"] == "Complete"]
    over = [list(t.violations.values()) for t in trials if t.state is TrialState.COMPLETE]
    assert shown == over
    assert {value > 0 for (value,) in shown} == {True, False}


def opened(url: str, begin: Any, out: Any) -> None:
    begin.wait()
    try:
        shared(url, "one")
        out.put("")
    except InputError as error:
        out.put(str(error))


def test_drivers_that_begin_at_the_same_moment_share_a_new_storage(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    begin, out = spawn.Event(), spawn.Queue()
    drivers = [spawn.Process(target=opened, args=(url, begin, out)) for _ in range(3)]
    for one in drivers:
        one.start()
    begin.set()
    assert [out.get(timeout=120) for _ in drivers] == [""] * len(drivers)
    for one in drivers:
        one.join()


def test_a_later_driver_knows_what_was_evaluated(url: str) -> None:
    _, first = search(url, "one", 0, trials=10)
    trials, second = search(url, "two", 1, trials=25)
    assert not set(first) & set(second)
    assert len(first) == 10
    elsewhere = [t for t in trials if "another driver" in t.reason and t.measurement]
    assert {t.policy.untrained_digest for t in elsewhere} >= set(first)
    assert len({t.number for t in trials}) == len(trials)


def test_what_another_driver_timed_is_read_beside_ones_own_baseline(url: str) -> None:
    """Each has timed the uncompressed model itself, in an hour of its own: ratios compare."""
    theirs, mine = shared(url, "one"), shared(url, "two")
    policy, evaluator = mine.space.decode((1, 2, 3)), AnalyticEvaluator(3)
    found = evaluator.evaluate(policy)
    found = replace(found, context={"timing": {"ratio": 0.5}})
    assert theirs.claim(policy, (1, 2, 3), 60)
    theirs.record(Trial(0, policy, measurement=found))
    base = evaluator.baseline.values["latency_ms"]
    context = Context(
        mine.space,
        evaluator,
        InProcessExecutor(evaluator),
        Budget("latency<=0.4x"),
        SearchConfig(sampler="random", trials=1, starts=False),
        [],
        shared=mine,
    )
    (trial,) = context.news()
    assert trial.measurement is not None
    assert trial.measurement.values["latency_ms"] == pytest.approx(0.5 * base)
    assert trial.violations["latency_ms"] == pytest.approx(0.1 / 0.4, rel=1e-6)


def test_of_two_claims_the_earlier_holds_until_its_time_is_over(url: str) -> None:
    one, two = shared(url, "one"), shared(url, "two")
    space = one.space
    levels = (1, 2, 3)
    policy = space.decode(levels)
    assert one.claim(policy, levels, 60)
    assert not two.claim(policy, levels, 60)
    other = space.decode((0, 0, 1))
    assert one.claim(other, (0, 0, 1), -1)  # its driver has died, and its time is over
    assert two.claim(other, (0, 0, 1), 60)
    again = shared(url, "one")  # a resumed run: what it had claimed is free
    assert again.claim(policy, levels, 60)


def test_a_storage_that_goes_away_stops_no_search(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was found meanwhile is written when it is back."""
    mine = shared(url, "one")
    space, evaluator = mine.space, AnalyticEvaluator(3)
    levels = [(i, 0, 0) for i in range(1, 4)]

    def gone(*args: object, **more: object) -> None:
        raise OSError("the server has gone away")

    def trial(number: int) -> Trial:
        policy = space.decode(levels[number])
        return Trial(number, policy, measurement=evaluator.evaluate(policy))

    with monkeypatch.context() as broken:
        broken.setattr(mine._storage, "get_all_trials", gone)
        broken.setattr(mine._storage, "create_new_trial", gone)
        assert mine.claim(space.decode(levels[0]), levels[0], 60)
        mine.record(trial(0))
        assert mine.news() == []
        assert mine.claim(space.decode(levels[1]), levels[1], 60)
        mine.record(trial(1))
    assert caplog.text.count("goes on alone") == 1
    monkeypatch.setattr(mine, "_down_until", 0.0)
    mine.record(trial(2))
    done = mine.study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert [t.user_attrs["policy"] for t in done] == [
        space.decode(a).untrained_digest for a in levels
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"weights": "x"}, "weights"), ({"data": "x"}, "data"), ({"target": "x"}, "target")],
)
def test_a_study_of_something_else_is_refused(url: str, change: dict[str, str], says: str) -> None:
    shared(url, "one")
    with pytest.raises(InputError, match=f"other {says}"):
        shared(url, "two", **change)
    with pytest.raises(InputError, match="other choices"):
        shared(url, "three", layers=4)


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql://me:secret@127.0.0.1:1/none", "journal:/nowhere/x/y"]
)
def test_a_storage_that_does_not_open_is_a_sentence_without_the_password(url: str) -> None:
    with pytest.raises(InputError, match="cannot be used") as told:
        shared(url, "one")
    assert "secret" not in str(told.value)

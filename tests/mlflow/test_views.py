"""Saved views of MLflow's interface: as tags, and as a browser shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import keep, pages
from mlflow_runs import content

from autocompress.mlflow import views
from autocompress.mlflow.server import Server, links_of
from autocompress.mlflow.store import Store, sync
from autocompress.results.metric import ACCURACY, LATENCY, Metric
from autocompress.results.trial import TrialState
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

MakeRun = Callable[..., RunFolder]
OBJECTIVES = (ACCURACY, LATENCY)


def test_written_again_nothing_changes() -> None:
    first = views.tags({}, OBJECTIVES, 1)
    assert {*views.KIND, "autocompress.views"} < {*first}
    assert views.tags(first, OBJECTIVES, 1) == {}


def test_a_later_state_replaces_ours_and_leaves_theirs_alone() -> None:
    known = views.tags({}, OBJECTIVES, 1)
    front, trials = (f"mlflow.sharedViewState.{views.key(v)}" for v in ("front", "trials"))
    known[front] = known[front].replace("true", "false")
    del known[trials]  # somebody does not want it
    error = Metric("mean_absolute_error", "", "minimize")
    again = views.tags(known, (error, LATENCY), 1)
    assert front not in again
    assert trials not in again
    charts = json.loads(again[f"mlflow.sharedViewState.{views.key('charts')}"])
    assert "mean_absolute_error" in charts["state"]
    assert "mlflow.experimentKind" not in again


@pytest.mark.parametrize("damaged", ["", "garbage", "null", "[]", '"front"', "[" * 5000])
def test_a_damaged_record_of_what_was_written_leaves_all_that_stands(damaged: str) -> None:
    known = views.tags({}, OBJECTIVES, 1) | {"autocompress.views": damaged}
    error = Metric("mean_absolute_error", "", "minimize")
    assert views.tags(known, (error, LATENCY), 1) == {}
    trials = f"mlflow.sharedViewState.{views.key('trials')}"
    del known[trials]
    again = views.tags(known, (error, LATENCY), 1)
    assert {*again} == {trials, "autocompress.views"}
    assert views.tags(known | again, (error, LATENCY), 1) == {}


def test_an_experiment_of_another_kind_stays_one() -> None:
    assert "mlflow.experimentKind" not in views.tags(
        {"mlflow.experimentKind": "genai_development"}, OBJECTIVES, 1
    )


def test_long_names_stay_within_what_a_database_takes() -> None:
    long = Metric("m" * 250, "", "maximize")
    for name, text in views.tags({}, (long, LATENCY), 1).items():
        assert len(text) <= 5000, name


def test_the_front_is_on_the_first_page_of_a_long_study(tmp_path: Path, make_run: MakeRun) -> None:
    """MLflow's page asks for 100 runs at a time."""
    folder = make_run(tmp_path / "resnet20", 180)
    front = {f"trial {t.number}" for t in RunView.load(folder).front}
    recorder = sync(folder)
    client, place = recorder.client, [recorder.experiment_id]
    tags = client.get_experiment(recorder.experiment_id).tags
    for view in ("front", "charts"):
        state = json.loads(json.loads(tags[f"mlflow.sharedViewState.{views.key(view)}"])["state"])
        order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
        page = client.search_runs(place, state["searchFilter"], max_results=100, order_by=[order])
        assert front <= {run.info.run_name for run in page}, view
    assert len(page) == 100


def test_the_charts_hold_no_trial_that_was_scored_on_test(
    tmp_path: Path, make_run: MakeRun
) -> None:
    folder = make_run(tmp_path / "resnet20", 20)
    done = [t for t in RunView.load(folder).trials if t.state is TrialState.COMPLETE]
    shown = {f"trial {t.number}" for t in done if t.phase.kind != "verify"}
    assert len(shown) < len(done)
    recorder = sync(folder)
    tags = recorder.client.get_experiment(recorder.experiment_id).tags
    state = json.loads(json.loads(tags[f"mlflow.sharedViewState.{views.key('charts')}"])["state"])
    found = recorder.client.search_runs([recorder.experiment_id], state["searchFilter"])
    assert {run.info.run_name for run in found} == shown


@pytest.mark.timeout(300)
def test_a_browser_opens_the_front_all_trials_and_the_charts(
    tmp_path: Path, make_run: MakeRun
) -> None:
    folder = make_run(tmp_path / "runs" / "resnet20", 30)
    view = RunView.load(folder)
    recorder = sync(folder)
    before = content(Store.of(folder, None))
    sync(folder)
    assert content(Store.of(folder, None)) == before
    with Server(tmp_path / "runs", port=0) as server, pages(width=1700) as page:
        links = links_of(server.url, recorder)

        def shown(link: str, wait: str) -> str:
            opened = page()
            opened.goto(link)
            opened.get_by_text(wait).first.wait_for(timeout=60_000)
            opened.wait_for_timeout(1500)  # rows and plots are drawn one after the other
            keep(opened, f"mlflow_{wait.replace(' ', '_')}")
            return str(opened.inner_text("body"))

        cheapest = min(view.front, key=lambda t: t.measurement["latency_ms"])
        front = shown(links.front, f"trial {cheapest.number}")
        rows = [int(n) for n in re.findall(r"trial (\d+)", front)]
        by_cost = sorted(view.front, key=lambda t: t.measurement["latency_ms"])
        assert rows == [t.number for t in by_cost]
        for column in ("accuracy", "latency_ms", "latency_ratio", "size_bytes", "method"):
            assert column in front, column

        last = max(t.number for t in view.trials)
        trials = shown(links.trials, f"trial {last}")
        assert f"{len(view.trials)} matching runs" in trials
        for column in ("phase", "origin", "feasible", "reason"):
            assert column in trials, column

        charts = shown(links.charts, "Parallel Coordinates")
        assert "hypervolume" in charts
        assert "Model metrics" in charts

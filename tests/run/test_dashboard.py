"""Runs in optuna-dashboard, through its own server and in a browser."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from browser import keep, pages
from tiny_study import heed_signals

from autocompress.results.trial import TrialState
from autocompress.run.dashboard import add_run
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

MakeRun = Callable[..., RunFolder]


def test_the_study_has_the_runs_trials_and_optuna_finds_the_same_front(
    tmp_path: Path, make_run: MakeRun
) -> None:
    view = RunView.load(make_run(tmp_path / "resnet20", 30))
    study = add_run(optuna.storages.InMemoryStorage(), view, "resnet20")
    shown = {t.user_attrs["trial"]: t for t in study.trials}
    assert {*shown} == {t.number for t in view.trials}
    for trial in view.trials:
        complete = shown[trial.number].state is optuna.trial.TrialState.COMPLETE
        assert complete == (trial.state is TrialState.COMPLETE)
        over = shown[trial.number].system_attrs.get("constraints", [])
        assert all(v <= 0 for v in over) == trial.feasible or not complete
    # what a layer was given, as a parameter
    some = next(t for t in view.trials if t.policy.layers)
    layer, policy = next(iter(some.policy.layers.items()))
    for field, number in policy.as_dict().items():
        name = f"{layer}.{field}"
        if name in shown[some.number].params:
            assert shown[some.number].params[name] in (number, str(number))
    assert any("prune_ratio" in name for name in shown[some.number].params)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_dashboard_opens_on_the_runs_and_ends_cleanly(
    tmp_path: Path, make_run: MakeRun, ending: signal.Signals
) -> None:
    make_run(tmp_path / "resnet20", 12)
    started = RunFolder.create(tmp_path / "started")
    started.write_study({"name": "started"})
    command = [sys.executable, "-m", "autocompress", "ui", str(tmp_path), "--port", "0"]
    command += ["--dashboard", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    ) as process:
        try:
            assert process.stdout is not None
            found = json.loads(process.stdout.readline())
            assert found["runs"] == ["resnet20"]
            assert "baseline.json" in found["skipped"]["started"]
            with pages() as page:
                opened = page()
                opened.goto(found["url"])
                opened.get_by_text("resnet20").first.click()
                opened.get_by_text("Pareto Front").first.wait_for(timeout=60_000)
                opened.wait_for_timeout(1000)
                keep(opened, "dashboard")
            process.send_signal(ending)
            assert process.wait(30) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()  # what failed above would wait for it for ever

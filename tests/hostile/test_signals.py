"""Requests to end: what a command answers before, during and after its trials."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_study import PATIENCE_S, environment, heed_signals, started, study_of, trials_in, until

from autocompress.track.journal import read_trials

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_study_as_an_interrupt_does(tmp_path: Path, number: int) -> None:
    process = started(tmp_path, study_of(500))
    run = tmp_path / "runs" / "tiny"
    assert until(lambda: trials_in(run) >= 3 or process.poll() is not None)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert (run / "front.json").is_file()
    assert (run / "report.html").is_file()
    assert (run / "recipes" / "best.yaml").is_file()


@pytest.mark.parametrize(
    "executor",
    ["local", *(pytest.param(e, marks=pytest.mark.slow) for e in ("ray", "ray_tune"))],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_costs_no_trial(
    tmp_path: Path, number: int, executor: str
) -> None:
    """As of a terminal that goes, of `timeout`, systemd, or a cluster's scheduler."""
    process = started(tmp_path, study_of(500, workers=2, executor=executor))
    run = tmp_path / "runs" / "tiny"
    assert until(lambda: trials_in(run) >= 4 or process.poll() is not None)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    os.killpg(process.pid, number)
    log = tmp_path / "log"
    assert process.wait(PATIENCE_S) == 0, log.read_text()
    assert all(t.state != "FAILED" for t in read_trials(run)), log.read_text()
    assert "Traceback" not in log.read_text()
    assert (run / "recipes" / "best.yaml").is_file()
    assert until(lambda: not any(p.is_running() and p.status() != "zombie" for p in family), 8)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_before_the_first_trial_are_a_sentence(tmp_path: Path, number: int) -> None:
    study = study_of(5)
    study["baseline"] = {"schedule": {"epochs": 500, "batch_size": 64, "lr": 0.1}}
    process = started(tmp_path, study)
    folder = tmp_path / "runs" / "tiny"
    assert until(lambda: (folder / "trials.lock").is_file())
    time.sleep(3.0)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 130
    log = (tmp_path / "log").read_text()
    assert "Interrupted before the first trial; nothing is kept." in log
    assert "Traceback" not in log
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_has_hardly_begun_ends_with_a_sentence(tmp_path: Path, number: int) -> None:
    """While it still imports and reads; `targets` never asks for an answer to signals itself."""
    begun = "import autocompress.cli as c, sys; print('begun', flush=True); c.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.argv[1:] = ['targets']; {begun}"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_signals,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.send_signal(number)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 130, told
    assert "Interrupted before the end" in told
    assert "Traceback" not in told


def test_whoever_starts_with_nohup_wants_it_to_go_on(tmp_path: Path) -> None:
    study = study_of(5)
    study["baseline"] = {"schedule": {"epochs": 500, "batch_size": 64, "lr": 0.1}}
    process = started(tmp_path, study, through=["nohup"])
    assert until(lambda: (tmp_path / "runs" / "tiny" / "trials.lock").is_file())
    time.sleep(2.0)
    process.send_signal(signal.SIGHUP)
    time.sleep(2.0)
    assert process.poll() is None
    process.terminate()
    assert process.wait(PATIENCE_S) == 130


def test_an_interrupted_profile_says_so(tmp_path: Path) -> None:
    study = study_of(5)
    study["baseline"] = {"schedule": {"epochs": 500, "batch_size": 64, "lr": 0.1}}
    process = started(tmp_path, study, command="profile")
    time.sleep(4.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    assert "Interrupted before the end" in (tmp_path / "log").read_text()


def test_an_interrupt_before_the_first_trial_is_a_sentence(tmp_path: Path) -> None:
    process = started(tmp_path, study_of(5), cold=True)
    folder = tmp_path / "runs" / "tiny"
    assert until(lambda: (folder / "trials.lock").is_file())
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    # Python itself ends by the signal where it came inside of `exec`; shells show 130 for both
    assert process.wait(PATIENCE_S) in (130, -signal.SIGINT)
    log = (tmp_path / "log").read_text()
    assert "Interrupted before the first trial; nothing is kept." in log
    assert "Traceback" not in log
    assert not folder.exists()

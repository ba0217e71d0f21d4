"""Bad days, for real: code that hangs, throws and prints; processes and folders that go away."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tiny_study import STUDY, call, environment, heed_signals, started

from autocompress.errors import AutocompressError
from autocompress.run import ending, session
from autocompress.run.session import run_study
from autocompress.run.study import read_study
from autocompress.track import journal
from autocompress.track.folder import RunFolder
from autocompress.track.journal import read_trials

pytestmark = pytest.mark.timeout(900)

_PATIENCE_S = 300.0

_METRICS = """
import os, sys, time

def accuracy(outputs, targets):
    print("a metric that prints")
    os.write(1, b"and one that prints in native code\\n")
    what, run = os.environ["HOSTILE"], "runs/tiny/"
    # once the search has begun, after every second trial
    if os.path.exists(run + "study.yaml") and os.path.exists(run + "trials.jsonl"):
        if open(run + "trials.jsonl").read().count("\\n") % 2:
            if what == "hang":
                time.sleep(1e6)
            if what == "exit":
                sys.exit(0)
            if what == "interrupt":
                raise GeneratorExit
    return float((outputs.argmax(1) == targets).float().mean())

def task(**args):
    from autocompress import Task
    from autocompress.task.metrics import TaskMetric
    from torch.nn.functional import cross_entropy
    metric = TaskMetric("hits", "fraction of 1", "maximize", accuracy)
    return Task(metrics=metric, loss=cross_entropy)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baseline, bank and latency table, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_prepared(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "cache").symlink_to(prepared)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A study that a failed test has started must not go on beside the others."""
    yield
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if {"autocompress", "search"} <= {*child.cmdline()}:
                child.kill()


def study_of(trials: int = 6, **more: Any) -> dict[str, Any]:
    study = {**STUDY, "recovery": {"epochs": 0}, **more}
    return {**study, "search": {**STUDY["search"], "trials": trials, **more.get("search", {})}}


def until(true: Callable[[], bool], seconds: float = _PATIENCE_S) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def trials_in(run: Path) -> int:
    path = run / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.parametrize(
    ("what", "workers"),
    [
        ("hang", 1),
        *(
            pytest.param(what, workers, marks=pytest.mark.slow)
            for what, workers in (("hang", 2), ("exit", 1), ("exit", 2), ("interrupt", 1))
        ),
    ],
)
def test_a_hostile_metric_costs_its_trials(
    tmp_path: Path, what: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs, or throws what no program should; it prints to where the answer goes."""
    monkeypatch.setenv("HOSTILE", what)
    (tmp_path / "hostile.py").write_text(_METRICS)
    study = study_of(6, workers=workers, search={"trial_timeout_s": 4.0})
    study["data"] = {**study["data"], "task": {"factory": "hostile:task"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    done = call(tmp_path, "search tiny.yaml --json", check=None, timeout_s=600)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert "a metric that prints" in done.stderr
    trials = read_trials(tmp_path / "runs" / "tiny")
    failed = [t for t in trials if t.state == "FAILED" and t.phase.kind == "search"]
    assert failed
    wanted = {"hang": "longer than 4 s", "exit": "SystemExit", "interrupt": "GeneratorExit"}[what]
    assert all(wanted in t.reason for t in failed)
    assert sum(t.phase.kind == "search" for t in trials if t.state != "DUPLICATE") >= 6
    assert found["stopped"] == "trials"


@pytest.mark.parametrize(
    "executor",
    ["local", *(pytest.param(e, marks=pytest.mark.slow) for e in ("ray", "ray_tune"))],
)
def test_workers_end_with_their_study(tmp_path: Path, executor: str) -> None:
    """Killed without a chance to tidy up; nothing that it started is left after five seconds."""
    process = started(tmp_path, study_of(200, workers=2, executor=executor))
    run = tmp_path / "runs" / "tiny"
    assert until(lambda: trials_in(run) >= 2 or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "log").read_text()
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.kill()
    process.wait()
    gone = until(lambda: not any(p.is_running() and p.status() != "zombie" for p in family), 8)
    left = [p.name() for p in family if p.is_running() and p.status() != "zombie"]
    assert gone, left


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_study_as_an_interrupt_does(tmp_path: Path, number: int) -> None:
    process = started(tmp_path, study_of(500))
    run = tmp_path / "runs" / "tiny"
    assert until(lambda: trials_in(run) >= 3 or process.poll() is not None)
    process.send_signal(number)
    assert process.wait(_PATIENCE_S) == 0, (tmp_path / "log").read_text()
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
    assert process.wait(_PATIENCE_S) == 0, log.read_text()
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
    assert process.wait(_PATIENCE_S) == 130
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
    assert process.wait(_PATIENCE_S) == 130


def test_an_interrupted_profile_says_so(tmp_path: Path) -> None:
    study = study_of(5)
    study["baseline"] = {"schedule": {"epochs": 500, "batch_size": 64, "lr": 0.1}}
    process = started(tmp_path, study, command="profile")
    time.sleep(10.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(_PATIENCE_S) == 130
    assert "Interrupted before the end" in (tmp_path / "log").read_text()


def test_an_interrupt_before_the_first_trial_is_a_sentence(tmp_path: Path) -> None:
    process = started(tmp_path, study_of(5))
    folder = tmp_path / "runs" / "tiny"
    assert until(lambda: (folder / "trials.lock").is_file())
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    # Python itself ends by the signal where it came inside of `exec`; shells show 130 for both
    assert process.wait(_PATIENCE_S) in (130, -signal.SIGINT)
    log = (tmp_path / "log").read_text()
    assert "Interrupted before the first trial; nothing is kept." in log
    assert "Traceback" not in log
    assert not folder.exists()


def test_a_script_that_workers_cannot_import_is_refused_at_once(tmp_path: Path) -> None:
    """It would start its search in every worker, which would start theirs."""
    begin = (
        "import logging, torch, autocompress as ac\n"
        "log = logging.getLogger(__name__)  # a name that guards nothing\n"
        "model, rows = torch.nn.Linear(4, 3), (torch.randn(64, 4), torch.arange(64) % 3)\n"
    )
    call = "ac.search(model, {'train': rows}, workers=2, budget='latency<=0.5x')\n"
    guarded = f"if __name__ == '__main__':\n    {call.replace('latency<=0.5x', 'nonsense')}"
    guard = '`if __name__ == "__main__":`'
    other = f"if __name__ != 'other':\n    {call}"
    for text, name, says in (
        (call, "mine.py", guard),
        (call, "mine", guard),  # workers import a script whatever its name
        (other, "mine.py", guard),
        (guarded, "mine.py", "nonsense"),
    ):
        (tmp_path / name).write_text(begin + text)
        done = subprocess.run(
            [sys.executable, name],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 1
        assert says in done.stderr
    assert guard not in done.stderr


def test_a_second_search_changes_nothing_of_the_first(tmp_path: Path) -> None:
    process = started(tmp_path, study_of(500))
    run = tmp_path / "runs" / "tiny"
    try:
        assert until(lambda: trials_in(run) >= 1 or process.poll() is not None)
        before = {p: p.read_bytes() for p in (run / "study.yaml", run / "baseline.json")}
        other = study_of(3, budget=["latency<=0.9x"])
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({**other, "name": "other"}))
        for more in ("", " --resume", " --resume --new-baseline"):
            done = call(tmp_path, f"search other.yaml --out runs/tiny{more}", check=2)
            assert "--out" in done.stderr
        assert {p: p.read_bytes() for p in before} == before
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("what", [pytest.param("trials.lock", marks=pytest.mark.slow), ""])
def test_what_is_deleted_under_a_study_is_noticed(tmp_path: Path, what: str) -> None:
    process = started(tmp_path, study_of(500))
    run = tmp_path / "runs" / "tiny"
    assert until(lambda: trials_in(run) >= 1 or process.poll() is not None)
    if what:
        (run / what).unlink()
    else:
        shutil.rmtree(run, ignore_errors=True)
    assert process.wait(_PATIENCE_S) == 1
    log = (tmp_path / "log").read_text()
    assert "was deleted while its study ran" in " ".join(log.split())
    assert "Traceback" not in log


def test_a_full_disk_is_a_sentence_and_resuming_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    study, count = read_study(study_of(5)), 0
    append = journal._append

    def full(handle: int, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(handle, data)

    monkeypatch.setattr(journal, "_append", full)
    with pytest.raises(AutocompressError, match=r"No space left on device.*--resume"):
        run_study(study, tmp_path / "run")
    assert len(read_trials(tmp_path / "run")) == 2
    done = run_study(study, tmp_path / "run", resume=True)
    assert done.view.best is not None


def test_passwords_are_neither_written_nor_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    url = "sqlite://me:secret-word@/study.db"
    monkeypatch.setattr(session, "open_storage", lambda asked: asked == url)
    monkeypatch.setattr(session, "SharedTrials", lambda *args: None)
    tracking = {"storage": url, "uri": "http://me:secret-word@127.0.0.1:9/"}
    done = run_study(read_study(study_of(2, tracking=tracking)), tmp_path / "run")
    assert "secret-word" not in caplog.text
    assert done.view.trials
    written = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert len(written) > 5
    assert not [p for p in written if b"secret-word" in p.read_bytes()]


@pytest.mark.parametrize(
    "what",
    [
        "write_report",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("write_recipe", "_keep_models")),
    ],
)
def test_a_failure_at_the_end_costs_itself_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))

    def fails(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    from autocompress.run import recipes

    with monkeypatch.context() as broken:
        broken.setattr(recipes if what == "write_recipe" else ending, what, fails)
        done = run_study(read_study(study_of(4)), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert "No space left on device" in caplog.text
    (told,) = done.summary["unfinished"]
    assert "No space left on device" in told
    assert folder.front.is_file()
    assert folder.report.is_file() == (what != "write_report")
    assert (folder.recipes / "best.yaml").is_file() == (what != "write_recipe")
    assert done.view.best is not None
    again = run_study(read_study(study_of(4)), tmp_path / "run", resume=True)
    assert again.summary["unfinished"] == []
    assert folder.report.is_file()
    assert (folder.recipes / "best.yaml").is_file()

"""Bad days, for real: code that hangs, throws and prints; processes and folders that go away."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_study import PATIENCE_S, call, environment, started, study_of, trials_in, until

from autocompress.errors import AutocompressError
from autocompress.run import ending, session
from autocompress.run.session import run_study
from autocompress.run.study import read_study
from autocompress.track import journal
from autocompress.track.folder import RunFolder
from autocompress.track.journal import read_trials

pytestmark = pytest.mark.timeout(900)

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
    study = study_of(3, workers=workers, search={"trial_timeout_s": 4.0})
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
    assert sum(t.phase.kind == "search" for t in trials if t.state != "DUPLICATE") >= 3
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
    assert process.wait(PATIENCE_S) == 1
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

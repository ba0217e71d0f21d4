"""A study whose whole process tree is killed goes on where it stood, whoever ran its trials."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from tiny_study import STUDY, call, started

_PATIENCE_S = 300.0


def lines(journal: Path) -> list[str]:
    """Whole lines only: the last one may have been cut by the kill."""
    if not journal.is_file():
        return []
    text = journal.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_killed_study_goes_on(executor: str, tmp_path: Path) -> None:
    study = {**STUDY, "executor": executor, "workers": 2, "recovery": {"epochs": 0}}
    study["search"] = {**STUDY["search"], "trials": 7}
    journal = tmp_path / "runs" / "tiny" / "trials.jsonl"
    process = started(tmp_path, study)
    end = time.monotonic() + _PATIENCE_S
    while len(lines(journal)) < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert process.poll() is None, (tmp_path / "log").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = lines(journal)
    assert 3 <= len(before) < 7
    looked_at = lines(journal.with_name("screened.jsonl"))

    found = json.loads(call(tmp_path, "search tiny.yaml --resume --json").stdout)
    after = lines(journal)
    assert after[: len(before)] == before
    trials = [json.loads(line) for line in after]
    searched = [t for t in trials if t["phase"]["kind"] == "search" and t["state"] == "COMPLETE"]
    assert len(searched) >= 7
    numbers = [t["number"] for t in trials]
    assert len(set(numbers)) == len(numbers)
    assert found["best"] in numbers
    screened = lines(journal.with_name("screened.jsonl"))
    assert screened[: len(looked_at)] == looked_at
    keys = [(s["policy"], s["images"]) for s in map(json.loads, screened)]
    assert len(set(keys)) == len(keys) > 0, "a policy was screened again"


@pytest.mark.timeout(900)
def test_an_interrupted_recovery_leaves_its_answer(tmp_path: Path) -> None:
    """Ctrl-C while the second policy is trained: no verification, and a usable answer all the same.

    Five trainings are asked for; three are still to come when the interrupt arrives.
    """
    schedule = {"batch_size": 64, "lr": 0.02}
    study = {**STUDY, "recovery": {"epochs": 3, "candidates": 4, "schedule": schedule}}
    run = tmp_path / "runs" / "tiny"
    process = started(tmp_path, study)

    def kinds() -> list[str]:
        return [json.loads(line)["phase"]["kind"] for line in lines(run / "trials.jsonl")]

    end = time.monotonic() + _PATIENCE_S
    while "recover" not in kinds() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(_PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert "verify" not in kinds()
    assert 1 <= kinds().count("recover") < 5
    front = json.loads((run / "front.json").read_text())
    trials = {t["number"]: t for t in front["trials"]}
    # a trained answer's file was kept; one that the search alone found is built from its recipe
    trained = trials[front["best"]]["phase"] == "recover"
    assert front["model"] == ("models/best.onnx" if trained else None)
    assert (run / "models" / "best.onnx").is_file() == trained
    call(tmp_path, "apply runs/tiny/recipes/best.yaml -o applied.onnx")

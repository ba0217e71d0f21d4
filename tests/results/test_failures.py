"""A phase in which everything failed is told, with the exception that it failed by."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from handmade_run import BASELINE, BUDGET
from tiny_study import call

from autocompress.errors import ExportError
from autocompress.execute.local import told
from autocompress.policy.policy import Policy
from autocompress.report.html import write_report
from autocompress.report.tables import summary_json
from autocompress.report.verdict import verdict
from autocompress.results.failures import failed_phases, why
from autocompress.results.trial import Phase, Trial, TrialState
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView


def chained() -> None:
    try:
        raise KeyError("first")
    except KeyError as error:
        raise ValueError("the second\n  and its next line") from error


def plain() -> None:
    raise RuntimeError("no [such] file")


def ours() -> None:
    raise ExportError("the file does\nnot do it")


def silent() -> None:
    raise TimeoutError


RAISED: dict[str, tuple[Callable[[], None], str]] = {
    "chained": (chained, "ValueError: the second"),
    "plain": (plain, "RuntimeError: no [such] file"),
    "ours": (ours, "ExportError: the file does"),
    "without a text": (silent, "TimeoutError"),
}


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("before", ["", "the worker could not be set up: "])
def test_why_is_the_exception_whatever_stands_around_it(name: str, before: str) -> None:
    raises, says = RAISED[name]
    with pytest.raises(Exception) as raised:
        raises()
    trial = Trial(0, Policy(), state=TrialState.FAILED, reason=before + told(raised.value))
    assert why(trial) == before + says
    assert why(replace(trial, reason="")) == "unknown"


def test_what_was_not_evaluated_counts_for_nothing() -> None:
    states = [TrialState.REJECTED, TrialState.FAILED, TrialState.DUPLICATE, TrialState.FAILED]
    trials = [Trial(i, Policy(), state=s, reason="E: x") for i, s in enumerate(states)]
    (found,) = failed_phases(trials)
    assert found.as_dict() == {"phase": "search", "rung": 0, "trials": 2, "reason": "E: x"}
    assert failed_phases([*trials, Trial(4, Policy())]) == []
    assert failed_phases(trials[:1]) == []


def test_a_rung_is_told_by_itself() -> None:
    first = Trial(0, Policy(), Phase("recover", 1.0, 1))
    second = Trial(1, Policy(), Phase("recover", 2.0, 2), TrialState.FAILED, reason="E: x")
    (found,) = failed_phases([first, second])
    assert str(found).startswith("Rung 2 of recovery failed, as its one trial did: E: x. What")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("search", "The search"), ("recover", "Recovery"), ("verify", "Verification")],
)
def test_the_terminal_the_report_and_json_tell_of_it(
    kind: str, name: str, make_run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run")
    trials = RunView.load(folder).trials
    assert {t.phase.kind for t in trials} == {"search", "recover", "verify"}
    broken = [
        replace(t, state=TrialState.FAILED, measurement=None, reason="OSError: <no> disk")
        if t.phase.kind == kind and t.state is TrialState.COMPLETE
        else replace(t, state=TrialState.FAILED, reason="OSError: <no> disk")
        if t.phase.kind == kind and t.state is TrialState.FAILED
        else t
        for t in trials
    ]
    view = RunView.of(broken, BASELINE, budget=BUDGET, run=str(folder.root))
    (phase,) = summary_json(view)["failed_phases"]
    assert (phase["phase"], phase["reason"]) == (kind, "OSError: <no> disk")
    (sentence,) = [s for s in verdict(view).sentences if "failed" in s]
    assert sentence.startswith(f"{name} failed, as ")
    assert "OSError: <no> disk" in sentence
    assert verdict(view).tone != "good"
    page = write_report(folder, view).read_text(encoding="utf-8")
    assert page.count("OSError: &lt;no&gt; disk") >= 2  # in the verdict, and why trials failed
    whole = RunView.of(trials, BASELINE, budget=BUDGET)
    assert summary_json(whole)["failed_phases"] == []
    assert not any("failed" in s for s in verdict(whole).sentences)


def test_a_verification_that_fails_alone_is_told(
    make_run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    trials = RunView.load(make_run(tmp_path / "run")).trials
    best = RunView.of(trials, BASELINE, budget=BUDGET).best
    assert best is not None
    broken = [
        replace(t, state=TrialState.FAILED, measurement=None, reason="OSError: no disk")
        if t.phase.kind == "verify" and t.parent == best.number
        else t
        for t in trials
    ]
    others = [t for t in broken if t.phase.kind == "verify" and t.state is TrialState.COMPLETE]
    assert others, "others are verified"
    view = RunView.of(broken, BASELINE, budget=BUDGET)
    sentences = verdict(view).sentences
    assert f"The verification of trial {best.number} failed: OSError: no disk" in sentences


BROKEN = """
import torch
from autocompress.task.ready import classification

def data():
    x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    return {"train": (x, (x[:, 0] > 0).long())}

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))

def task():
    return classification(loss=fails)

def fails(outputs, targets):
    raise ValueError("no such loss")
"""
STUDY = {
    "name": "broken",
    "model": {"factory": "broken:model"},
    "data": {"factory": "broken:data", "task": "broken:task"},
    "budget": ["macs<=0.9x"],
    "search": {"trials": 2, "candidates": 2, "screen_images": 32},
    "recovery": {"epochs": 1, "candidates": 1},
}


@pytest.mark.timeout(600)
def test_a_search_whose_recovery_failed_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(STUDY))
    done = call(tmp_path, "search broken.yaml --json", check=1)
    found = json.loads(done.stdout)
    assert found["answered"]
    (phase,) = found["failed_phases"]
    assert (phase["phase"], phase["reason"]) == ("recover", "ValueError: no such loss")
    assert "Recovery failed" in done.stderr

"""The tables of a run on the terminal, and a run without an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_trials import BASE, trial, view
from rich.console import Console

from autocompress.errors import InputError, NoAnswer
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.report.tables import front_table, trial_json, verdict_table, what
from autocompress.results.trial import Phase, within
from autocompress.run.recipes import pick_trial
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

MakeRun = Callable[..., RunFolder]


def test_tables_show_the_answer_beside_the_reference_policies(
    tmp_path: Path, make_run: MakeRun
) -> None:
    found = RunView.load(make_run(tmp_path / "resnet20", 40))
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    console.print(front_table(found))
    console.print(verdict_table(found))
    text = console.export_text()
    assert found.best is not None
    assert f"{found.best.number} *" in text
    assert all(f"{name} (trial" in text for name in ("uniform", "int8", "random", "chosen"))
    assert all(f"{100 * t.measurement['accuracy']:.2f}" in text for t in found.front)  # type: ignore[index]  # measured: complete trials only


@pytest.mark.parametrize(
    ("ratio", "kind", "verified", "differ"),
    [
        (0.5, "search", True, True),
        (0.0, "search", True, False),  # bits alone are the same in every build
        (0.5, "recover", True, False),  # val and test are of the same weights
        (0.5, "search", False, False),
    ],
)
def test_tables_say_where_val_and_test_are_of_different_builds(
    ratio: float, kind: str, verified: bool, differ: bool
) -> None:
    layer = LayerPolicy(prune_ratio=ratio, weight_bits=8)
    first = replace(trial(1, 0.88, 0.8), policy=Policy({"a": layer}), phase=Phase(kind))
    check = replace(first, number=2, phase=Phase("verify"), parent=1)
    found = view([first, check] if verified else [first])
    assert found.builds_differ == differ
    said = front_table(found).caption
    assert isinstance(said, str)
    assert ("thorough" in said) == differ


def test_a_run_without_an_answer_failed_and_is_no_bad_input(
    tmp_path: Path, make_run: MakeRun
) -> None:
    folder = make_run(tmp_path / "r", 20, feasible=False)
    with pytest.raises(NoAnswer) as none:
        pick_trial(RunView.load(folder), "best")
    assert none.value.exit_code == 1
    with pytest.raises(InputError) as wrong:
        pick_trial(RunView.load(folder), "bst")
    assert wrong.value.exit_code == 2


def test_a_trial_alone_is_told_as_one_of_a_run_and_more() -> None:
    """All but its place in a run; ``front.json`` of earlier versions keeps its keys."""
    found = trial(3, 0.88, 0.8)
    assert found.measurement is not None
    timed = {"timing": {"ratio": 0.3}, "problems": ["slow"], "notes": ["a note"]}
    found = replace(found, measurement=replace(found.measurement, context=timed))
    in_run, alone = trial_json(found, BASE), trial_json(found, BASE, alone=True)
    shared = set(in_run) & set(alone)
    assert {k: in_run[k] for k in shared} == {k: alone[k] for k in shared}
    place = {"number", "phase", "origin", "parent", "state", "reason"}
    assert set(in_run) - shared == place
    assert {k: alone[k] for k in set(alone) - shared} == {
        "params": None,
        "violations": {"latency_ms": pytest.approx(-0.2)},
        "problems": ["slow"],
        "notes": ["a note"],
    }
    assert alone["feasible"]
    assert alone["latency_ratio"] == 0.3  # as timed side by side


@pytest.mark.parametrize(("epochs", "said"), [(1, "1 epoch"), (0.5, "0.5 epochs"), (2, "2 epochs")])
def test_epochs_are_counted_in_words(epochs: float, said: str) -> None:
    found = replace(trial(1, 0.88, 0.8), phase=Phase("recover", epochs, 1))
    assert what(found, view([found])).endswith(f"trained {said}")


def test_exactly_the_limit_is_within() -> None:
    assert within({})
    assert within({"a": 0.0, "b": -1.0})
    assert not within({"a": -1.0, "b": 1e-9})
    assert not within({"a": float("nan")})

"""What a finished run tells of another target: nothing of its first one, of another model or task.

The table is that of a device whose times are known.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished_run import finished_run, rewritten, with_costs
from known_times import device_table
from tiny_study import call

from autocompress.commands.forecasting import show
from autocompress.commands.reading import open_report
from autocompress.errors import InputError
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.other_device import device_model
from autocompress.machine import energy
from autocompress.machine.progress import silent
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recipe import Recipe
from autocompress.report.course import course
from autocompress.report.tables import summary_json
from autocompress.results.trial import Phase, Trial, TrialState
from autocompress.run import reopened
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.forecast import POINTS, forecast, sweep
from autocompress.run.recipes import export
from autocompress.run.retarget import retarget
from autocompress.run.study import read_study
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.view import RunView

pytestmark = pytest.mark.timeout(900)
OTHER = "openvino"
FIRST_MS = 123.0
"""On the first target: neither the table nor this machine tells as much of any model."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("told") / "made", FIRST_MS)


@pytest.fixture(scope="module")
def parts(made: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    return assemble(read_study(made.read_study()), tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def table(parts: Assembly, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device") / "table.json"
    plan = LayerPlan(parts.inventory, parts.study.settings)
    path.write_text(json.dumps(device_table(plan, parts.space, parts.inventory)))
    return path


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may change."""
    shutil.copytree(made.root, tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


def there(run: RunFolder, target: str) -> RunView:
    return retarget(run, RunView.load(run), target, silent)[0]


def with_other_trials(run: RunFolder) -> Policy:
    """Add a rejection, a repetition and a cascade; the policy that was rejected."""
    first, second = (t.measurement for t in RunView.load(run).trials)
    assert first is not None
    assert second is not None
    layer = next(iter(RunView.load(run).trials[0].policy))
    rejected = Policy({layer: LayerPolicy(weight_bits=8)})
    stages = {"cascade": {"stages": [{"members": ["trial 0"]}], "confidence": "margin"}}
    cascade = replace(first, context={**first.context, **stages})
    same = RunView.load(run).trials[1].policy
    with Journal(run) as journal:
        journal.record(Trial(2, rejected, state=TrialState.REJECTED, measurement=first))
        journal.record(Trial(3, same, state=TrialState.DUPLICATE, measurement=second, parent=1))
        journal.record(Trial(4, Policy(), Phase("cascade"), measurement=cascade))
    return rejected


def test_a_table_tells_the_latency_of_every_trial_that_has_one(
    run: RunFolder, parts: Assembly, table: Path, tmp_path: Path
) -> None:
    with_other_trials(run)
    told = summary_json(there(run, str(table)))
    model = device_model(table, parts.inventory, parts.study.settings, tmp_path / "cache")
    assert [t["number"] for t in told["trials"]] == [0, 1, 2, 3]
    for trial in told["trials"]:
        ms = model.predict(Policy.read(trial["policy"], where="it"))[0]
        assert trial["latency_ms"] == pytest.approx(ms)
        assert trial["latency_ratio"] == pytest.approx(ms / told["baseline"]["latency_ms"])
    assert "cascades" not in told  # what it takes there nobody has measured


def test_what_was_not_timed_there_has_no_latency(run: RunFolder) -> None:
    pytest.importorskip("openvino")
    rejected = with_other_trials(run)
    found = there(run, OTHER)
    assert all(t.phase.kind != "cascade" for t in found.trials)
    for trial in found.trials:
        assert trial.measurement is not None
        assert (trial.policy == rejected) == ("latency_ms" not in trial.measurement)
        assert trial.measurement.get("latency_ms", 0.0) < FIRST_MS / 50
    repeated, first = (found.by_number[n].measurement for n in (3, 1))
    assert repeated is not None
    assert first is not None
    assert repeated["latency_ms"] == first["latency_ms"]


def test_students_of_which_a_table_tells_nothing_cost_their_trials_alone(
    run: RunFolder, table: Path
) -> None:
    first = RunView.load(run).trials[0].measurement
    with Journal(run) as journal:
        journal.record(Trial(2, Policy(student="another"), measurement=first))
    found = there(run, str(table))
    assert [str(t.state) for t in found.trials] == ["COMPLETE", "COMPLETE", "FAILED"]
    assert {0, 1} >= {t.number for t in found.front}


@pytest.mark.parametrize("target", ["table", OTHER])
def test_limits_that_the_other_target_cannot_tell_are_left_out(
    run: RunFolder,
    table: Path,
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(energy, "RAPL", tmp_path)  # as on a machine that tells none
    monkeypatch.setenv("PATH", str(tmp_path))
    rewritten(run, with_costs("energy_mj", "latency_p99_ms"))
    limits = ["macs<=0.9x", "energy<=9x", "latency_p99<=9x"]
    run.write_study({**run.read_study(), "budget": limits})
    found = there(run, str(table) if target == "table" else OTHER)
    kept = {"table": ["macs"], OTHER: ["macs", "latency_p99_ms"]}[target]
    assert list(found.budget.metrics) == kept
    assert "only this is known there: macs<=0.9x" in caplog.text
    assert found.front


@pytest.mark.parametrize("target", ["table", OTHER])
def test_another_model_is_not_timed_in_the_place_of_the_runs(
    run: RunFolder, table: Path, target: str
) -> None:
    pytest.importorskip("openvino")
    study = run.read_study()
    study["model"]["args"]["width"] = 8
    run.write_study(study)
    with pytest.raises(InputError, match="made on another model"):
        there(run, str(table) if target == "table" else OTHER)
    assert not (run.root / "elsewhere").exists()


def test_a_table_of_other_threads_says_so(
    run: RunFolder, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = json.loads(table.read_text())
    told["facts"]["target"] = {"runtime": "onnxruntime", "threads": 4, "batch": 1}
    (tmp_path / "table.json").write_text(json.dumps(told))
    there(run, str(tmp_path / "table.json"))
    assert "timed with `threads: 4`, and the study says `threads: 1`" in caplog.text
    assert "batch" not in caplog.text


@pytest.fixture(scope="module")
def timed(made: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run, timed on another runtime."""
    pytest.importorskip("openvino")
    root = tmp_path_factory.mktemp("timed") / "run"
    shutil.copytree(made.root, root)
    there(RunFolder.open(root), OTHER)
    return RunFolder.open(root)


def test_recipes_and_reports_there_are_of_that_target(
    timed: RunFolder, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(timed.root, tmp_path / "run")
    timed = RunFolder.open(tmp_path / "run")
    path, opened = tmp_path / "recipe.yaml", list[str]()
    found = export(str(timed.root), "1", path, target=OTHER)
    recipe, view = Recipe.load(path), there(timed, OTHER)
    assert (recipe.target.runtime, recipe.study["target"]["runtime"]) == (OTHER, OTHER)
    measured = view.by_number[1].measurement
    assert measured is not None
    assert found["measurement"]["latency_ms"] == measured["latency_ms"] < FIRST_MS / 50
    assert recipe.baseline.values["latency_ms"] == view.baseline["latency_ms"] < FIRST_MS / 50
    with pytest.raises(InputError, match="a table foretells it"):
        export(str(timed.root), "1", path, target=str(table))

    monkeypatch.setattr("typer.launch", opened.append)
    open_report(str(timed.root), view)
    page = Path(opened[0]).read_text()
    assert f"tiny on {OTHER}" in page
    assert f'"there":"--target {OTHER}"' in page
    assert not timed.report.exists()
    assert summary_json(view)["target"] == OTHER
    assert "target" not in summary_json(RunView.load(timed))


def test_what_the_gate_saw_on_the_first_target_says_nothing_there(timed: RunFolder) -> None:
    said = {
        "problems": ["The quantized file is slower.", "accuracy cannot be told"],
        "notes": ["10 integer kernels"],
        "expected": {"latency_ms": FIRST_MS, "sigma_ms": 1.0},
    }
    before = timed.trials.read_bytes()
    rewritten(timed, lambda found: replace(found, context={**found.context, **said}))
    view = there(timed, OTHER)
    for trial in view.trials:
        assert trial.measurement is not None
        told = trial.measurement.context
        assert told["problems"] == ["accuracy cannot be told"]
        assert not {"notes", "expected"} & told.keys()
    assert course(view)["expected"] == []
    timed.trials.write_bytes(before)


def _first(kept: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = next(iter(kept["policies"].values()))
    return told


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: _first(kept)["costs"].update(latency_ms=float("nan")),
        lambda kept: _first(kept)["costs"].update(latency_ms=-1.0),
        lambda kept: _first(kept)["costs"].update(latency_ms=0.0),
        lambda kept: _first(kept)["costs"].pop("latency_ms"),
        lambda kept: _first(kept)["costs"].update(accuracy=1.0),
        lambda kept: _first(kept)["costs"].update(latency_ms="0.1"),
        lambda kept: _first(kept).update(spread=float("inf")),
        lambda kept: _first(kept)["timing"].update(ratio="half"),
        lambda kept: kept.update(policies=[]),
        lambda kept: kept.update(baseline={}),
    ],
)
def test_kept_timings_that_are_none_are_named(
    timed: RunFolder, damage: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    shutil.copytree(timed.root, tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    (file,) = (run.root / "elsewhere").iterdir()
    kept = json.loads(file.read_text())
    damage(kept)
    file.write_text(json.dumps(kept))
    with pytest.raises(InputError, match=rf"{file.name}.*`front --target` times") as caught:
        there(run, OTHER)
    assert "--resume" not in str(caught.value)


def test_two_at_once_tell_the_same(run: RunFolder) -> None:
    """The second waits for what the first one times, and takes it over."""
    pytest.importorskip("openvino")
    asked = [sys.executable, "-m", "autocompress", "front", str(run.root), "--target", OTHER]
    both = [
        subprocess.Popen(
            [*asked, "--json"],
            cwd=run.root.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert json.loads(told[0][0]) == json.loads(told[1][0])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_that_may_only_be_read_is_timed_all_the_same(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    run.root.chmod(0o555)
    try:
        assert there(run, OTHER).front
    finally:
        run.root.chmod(0o755)
    assert "cannot be kept" in caplog.text


def test_one_assembly_answers_for_every_budget_on_a_table(
    run: RunFolder, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Assembly] = []

    def counted(*given: Any, **more: Any) -> Assembly:
        made.append(assemble(*given, **more))
        return made[-1]

    monkeypatch.setattr(reopened, "assemble", counted)
    found = sweep(str(run.root), silent, target=str(table))
    assert len(made) == 1
    assert len(found["sweep"]) == POINTS
    assert found["sweep"][-1]["budget"] == ["latency<=1x"]
    costs = [row["expected"]["shares"]["latency_ms"] for row in found["sweep"] if row["expected"]]
    assert len(costs) >= POINTS - 1
    assert costs[-1] == pytest.approx(1.0)
    base = there(run, str(table)).baseline["latency_ms"]
    assert found["sweep"][-1]["expected"]["latency_ms"]["value"] == pytest.approx(base)


def test_a_limit_that_is_only_measured_is_not_foretold(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten(run, with_costs("peak_memory_bytes"))
    found = forecast(str(run.root), ["memory<=0.5x"], silent)
    assert found["only_measured"] == ["memory<=0.5x"]
    assert found["expected"] is None
    assert found["measured"]["trial"] == 0  # the one of 0.1; the other has 0.6
    both = forecast(str(run.root), ["memory<=0.5x", "macs<=0.4x"], silent)
    assert both["only_measured"] == ["memory<=0.5x"]
    assert both["expected"]["shares"]["macs"] <= 0.4
    show(str(run.root), ["memory<=0.5x"], target=None, python=None, trust=False, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "Only measuring tells whether a policy is within memory<=0.5x." in text
    assert "expect" not in text


@pytest.mark.parametrize("target", [None, "table", OTHER])
def test_a_limit_on_what_nothing_measured_is_refused_at_once(
    run: RunFolder, table: Path, target: str | None
) -> None:
    named = str(table) if target == "table" else target
    with pytest.raises(InputError, match=r"memory.* latency, "):
        forecast(str(run.root), ["memory<=64MB"], silent, target=named)
    assert not (run.root / "elsewhere").exists()


@pytest.mark.parametrize("options", ["", "--target openvino", "--target table.json"])
def test_python_of_no_device_is_refused(run: RunFolder, options: str) -> None:
    told = call(run.root.parent, f"front {run.root} {options} --python python3", check=2)
    assert "--python names Python on a device" in told.stderr

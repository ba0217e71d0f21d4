"""Studies of tasks other than classification, from the first line to a verified recipe."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_tasks
import torch
import yaml
from torch import Tensor

import autocompress as ac
from autocompress.errors import InputError
from autocompress.measure import memory
from autocompress.measure.measurer import Measurer
from autocompress.mlflow.labels import front_rows, study_params, study_tags, trial_metrics
from autocompress.policy.recipe import Recipe
from autocompress.report.tables import trial_json
from autocompress.run.replay import check
from autocompress.run.session import EndedRun, run_study
from autocompress.run.study import read_study
from autocompress.run.tasks import make_task
from autocompress.task.ready import multi_label, regression
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

pytestmark = pytest.mark.timeout(300)

QUICK: dict[str, Any] = {
    "search": {"trials": 4, "candidates": 1, "screen_images": 64, "random_references": 0},
    "settings": {"calibration_images": 64},
    "tracking": {"mlflow": False},
}
SPACE = {"rules": [{"match": "*", "prune_ratio": [0, 0.5, 0.75]}]}


@pytest.fixture(scope="module", autouse=True)
def _quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latencies are timed for a tenth of a second, and nobody asks for the memory."""
    timing = Measurer.timing
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(Measurer, "timing", lambda own, path, **_: timing(own, path, max_seconds=0.1))
        patch.setattr(memory, "peak_memory_bytes", lambda *_: None)
        yield


def study(name: str, model: str, data: dict[str, Any], **more: Any) -> Any:
    given = {"name": name, "model": {"factory": f"small_tasks:{model}"}, "data": data}
    return read_study({**given, "space": SPACE, "budget": ["macs<=0.7x"], **QUICK, **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EndedRun:
    """A regression, from a study as a file would hold it."""
    data = {"factory": "small_tasks:numbers", "task": "regression"}
    return run_study(
        study("numbers", "regressor", data), tmp_path_factory.mktemp("run") / "numbers"
    )


def test_every_record_of_a_regression_names_its_error(run: EndedRun) -> None:
    view, summary = run.view, run.summary
    assert view.best is not None
    assert view.quality.as_dict() == {"name": "mse", "unit": "", "goal": "minimize"}
    assert summary["quality"]["goal"] == "minimize"
    errors = {t["number"]: t["mse"] for t in summary["trials"] if t["number"] in summary["front"]}
    assert view.best.number == min(errors, key=lambda n: errors[n])
    front = [view.by_number[n].measurement for n in summary["front"]]
    for cheap, costly in itertools.pairwise(front):  # what costs more is better
        assert cheap is not None
        assert costly is not None
        assert costly["mse"] < cheap["mse"]
    words = [run.folder.report.read_text(), json.dumps(summary), str(study_tags(view))]
    for text in words:
        assert "mse" in text
    assert "accuracy" not in json.dumps(summary).replace("max_accuracy_drop", "")
    assert study_params(view)["quality.name"] == "mse"
    assert "mse" in front_rows(view)[0]
    assert "mse_spread" in trial_metrics(view.entries[0], view.baseline, ())
    again = RunView.load(run.folder)
    assert again.decision.best == view.best
    assert trial_json(view.best, again.baseline)["mse"] == errors[view.best.number]


def test_the_baseline_is_that_of_the_network(run: EndedRun) -> None:
    part, network = small_tasks.numbers().val, small_tasks.regressor()
    with torch.inference_mode():
        each = (network(part.inputs())[:, 0] - part.targets).square()
    assert run.view.baseline.score == pytest.approx(float(each.mean()), rel=1e-4)
    error = float(each.std(correction=0)) / len(each) ** 0.5
    assert run.view.baseline.score_error == pytest.approx(error, rel=1e-3)


def test_a_recipe_of_a_regression_is_verified_in_both_directions(
    run: EndedRun, tmp_path: Path
) -> None:
    path = run.folder.recipes / "best.yaml"
    found = check(path, None, None)
    assert not [r for r in found["reasons"] if "latency" not in r]
    assert found["mse"] == pytest.approx(found["claimed_mse"], rel=1e-3)
    data = yaml.safe_load(path.read_text())
    assert data["measurement"]["metrics"][0]["goal"] == "minimize"
    data["measurement"]["values"]["mse"] /= 5  # what is there has five times the claimed error
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(data))
    for weights in path.parent.glob("*.safetensors"):
        (tmp_path / weights.name).write_bytes(weights.read_bytes())
    wrong = check(tmp_path / "wrong.yaml", None, None)
    assert not wrong["ok"]
    assert any(reason.startswith("mse") for reason in wrong["reasons"])
    assert Recipe.load(path).study["data"]["task"] == "regression"


def test_several_labels_are_searched_trained_and_taught(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "autocompress"):
        result = ac.search(
            small_tasks.tagger(),
            small_tasks.tags(),
            task="multi_label",
            budget="macs<=0.7x",
            space=SPACE,
            out=tmp_path / "tags",
            recovery={
                "epochs": 1,
                "rungs": 1,
                "candidates": 1,
                "compare_distillation": True,
                "schedule": {"batch_size": 64, "lr": 0.01},
            },
            max_quality_drop="20%",
            quiet=True,
            **QUICK,
        )
    first = next(r.message for r in caplog.records if r.name == "autocompress.task")
    assert first == "task: multi-label classification, judged by f1, % (maximize it)"
    assert result.feasible
    assert result.baseline.quality.name == "f1"
    found, base = result.best.trial.measurement, result.baseline
    assert found is not None
    assert {"f1", "label_accuracy"} <= set(found.values)
    assert base.score - found.score <= 0.2 * base.score
    phases = {t.phase.kind for t in result.view.trials if t.measurement}
    assert phases == {"search", "recover", "verify"}


def own_task() -> ac.Task:
    """Undefined on the test split, whose first target is marked below."""

    def undefined(outputs: Tensor, targets: Tensor) -> float:
        if bool((targets > 90).any()):
            raise ZeroDivisionError("no positives here")
        return float((outputs[:, 0] - targets).abs().mean())

    metric = ac.TaskMetric("gap", "m", "min", undefined, resamples=4)
    return ac.Task(metric, close="500%", name="distances")


def test_a_metric_that_fails_on_test_leaves_a_finished_study(tmp_path: Path) -> None:
    data = small_tasks.numbers()
    data.test.targets[0] = 99.0
    result = ac.search(
        small_tasks.regressor(),
        data,
        task=own_task(),
        budget="macs<=0.7x",
        space=SPACE,
        out=tmp_path / "own",
        quiet=True,
        **QUICK,
    )
    assert result.view.max_quality_drop == "500%"  # how close is close enough, as the task says
    checks = [t for t in result.view.trials if t.phase.kind == "verify"]
    assert checks
    assert all(t.measurement is not None and "gap" not in t.measurement for t in checks)
    folder = RunFolder.open(result.folder)
    assert folder.report.is_file()
    assert "no positives here" in folder.report.read_text()
    assert (folder.recipes / "best.yaml").is_file()
    assert data.task is None  # what was given is not changed


def test_points_of_accuracy_are_refused_for_another_quality(tmp_path: Path) -> None:
    data = {"factory": "small_tasks:numbers", "task": "regression"}
    asked = study("numbers", "regressor", data, max_accuracy_drop=1.0)
    with pytest.raises(InputError, match="Use `max_quality_drop`"):
        run_study(asked, tmp_path / "refused")
    with pytest.raises(InputError, match="not both"):
        study("numbers", "regressor", data, max_accuracy_drop=1.0, max_quality_drop="1%")
    with pytest.raises(InputError, match="task: regression"):
        run_study(study("n", "regressor", {"factory": "small_tasks:numbers"}), tmp_path / "asked")
    assert not (tmp_path / "asked").exists()


def test_a_task_has_a_name_a_factory_or_is_at_hand() -> None:
    own = regression("mae")
    assert make_task(own) is own
    assert make_task({"factory": "regression", "args": {"metric": "mae"}}).quality.name == "mae"
    made = make_task("autocompress.task.ready:multi_label")
    assert made.quality == multi_label().quality
    with pytest.raises(InputError, match=r"must return an autocompress\.Task"):
        make_task("small_tasks:numbers")


def test_a_run_is_not_continued_under_another_metric(run: EndedRun) -> None:
    data = {
        "factory": "small_tasks:numbers",
        "task": {"factory": "regression", "args": {"metric": "mae"}},
    }
    with pytest.raises(InputError, match=r"another metric \(mse, .*now mae"):
        run_study(study("numbers", "regressor", data), run.folder.root, resume=True)

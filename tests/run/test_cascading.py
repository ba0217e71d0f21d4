"""A cascade of a real run's members, beside their files asked one by one."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
import yaml
from finished_run import finished_run
from rich.console import Console
from scipy.special import softmax
from scipy.stats import entropy
from tiny_study import study_of

from autocompress.api_models import apply
from autocompress.cascade.choose import Asked, halves
from autocompress.cascade.manifest import Manifest, Stage
from autocompress.commands.cascading import show_cascade
from autocompress.errors import ExportError, InputError
from autocompress.exporters import onnx_cascade
from autocompress.report.cascades import on_test
from autocompress.report.tables import front_table, summary_json, what
from autocompress.results.trial import Trial
from autocompress.run import cascading, recipes, replay
from autocompress.run.assembly import assemble
from autocompress.run.cascade_members import RunMembers, class_scores
from autocompress.run.cascading import cascade
from autocompress.run.session import run_study
from autocompress.run.study import read_study
from autocompress.run.tracking import track
from autocompress.runtime import Cascade
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView
from autocompress.workloads.data import digits

BASE_MS = 1.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("cascade") / "run", BASE_MS)


@cache
def opened(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def file_logits(path: Path, one: np.ndarray) -> np.ndarray:
    """What a file answers to one input, ``(classes,)``."""
    session = opened(path)
    return session.run(None, {session.get_inputs()[0].name: one})[0][0].astype(np.float64)


def is_sure(manifest: Manifest, stage: Stage, each: list[np.ndarray]) -> bool:
    """Whether a stage answers, told by scipy."""
    hot = [softmax(z / t).max() for z, t in zip(each, stage.temperatures, strict=True)]
    if len(each) == 2:
        return each[0].argmax() == each[1].argmax() and min(hot) >= stage.threshold
    p = np.sort(softmax(each[0]))
    sure = {"margin": p[-1] - p[-2], "entropy": -entropy(p), "probability": hot[0]}
    return bool(sure[manifest.confidence] >= stage.threshold)


@pytest.fixture(scope="module")
def made(finished: RunFolder) -> dict[str, Any]:
    return cascade(str(finished.root), Asked(mean_ms=0.6), early_exits=False)


def test_the_test_split_is_answered_as_its_files_answer(
    finished: RunFolder, made: dict[str, Any]
) -> None:
    folder = Path(made["manifest"]).parent
    manifest = Manifest.load(folder)
    assert len(manifest.stages) == len(made["stages"]) > 1
    test = digits().test
    inputs, targets = test.inputs().numpy(), test.targets.numpy()
    answers, stages = [], []
    for i in range(len(inputs)):
        for place, stage in enumerate(manifest.stages):
            each = [file_logits(folder / name, inputs[i : i + 1]) for name in stage.files]
            if stage.threshold is None or is_sure(manifest, stage, each):
                answers.append(each[-1].argmax())
                stages.append(place)
                break
    assert made["test"]["accuracy"] == pytest.approx((np.array(answers) == targets).mean())
    places = np.array(stages)
    assert made["test"]["answered"] == pytest.approx(
        [(places == i).mean() for i in range(len(manifest.stages))]
    )
    threes = places[targets == 3]
    assert made["test"]["answered_by_class"]["3"][0] == pytest.approx((threes == 0).mean())
    runner = Cascade(folder)
    (outputs,), told = runner.answer({runner.get_inputs()[0].name: inputs})
    np.testing.assert_array_equal(told, stages)
    np.testing.assert_array_equal(outputs.argmax(axis=1), answers)
    one = onnxruntime.InferenceSession(made["one_file"], providers=["CPUExecutionProvider"])
    name = one.get_inputs()[0].name
    single = [one.run(None, {name: inputs[i : i + 1]})[0][0].argmax() for i in range(40)]
    np.testing.assert_array_equal(single, answers[:40])


def test_it_is_better_than_one_member_as_quick(made: dict[str, Any]) -> None:
    assert made["val"]["mean_ms"] <= 0.6
    assert made["alone"]["as_quick"]["lost"] > made["val"]["lost"]
    assert made["stages"][0]["trials"][0] == 0
    assert made["latency"]["inputs"] == 359
    for name in ("uncompressed", "cascade", "one_file"):
        told = made["latency"][name]
        order = [told[k] for k in ("p50_ms", "p95_ms", "p99_ms", "worst_ms")]
        assert order == sorted(order)


def test_it_is_a_trial_of_its_own_phase(finished: RunFolder, made: dict[str, Any]) -> None:
    view = RunView.load(finished)
    trial, base = view.by_number[made["trial"]], view.baseline
    assert (trial.phase.kind, trial.number) == ("cascade", 2)
    found = trial.measurement
    assert found is not None
    assert found["latency_ms"] == pytest.approx(made["latency"]["cascade"]["ratio"] * BASE_MS)
    members = [base if n is None else view.by_number[n].measurement for n in trials_of(made)]
    assert found["size_bytes"] == sum(m["size_bytes"] for m in members)
    assert members[0]["macs"] < found["macs"] < sum(m["macs"] for m in members)
    assert trial.number not in {t.number for t in view.front}
    assert Trial.from_dict(trial.as_dict()).measurement == found
    (shown,) = summary_json(view)["cascades"]
    assert shown["stages"] == made["stages"]
    assert on_test(trial).score == pytest.approx(made["test"]["accuracy"])
    assert what(trial, view).startswith("trial 0")
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(front_table(view))
    for text in (console.export_text(), finished.report.read_text(encoding="utf-8")):
        assert what(trial, view) in text


def test_the_report_tells_who_answers(finished: RunFolder, made: dict[str, Any]) -> None:
    page = finished.report.read_text(encoding="utf-8")
    _, told = page.split(f"Who answers in trial {made['trial']}</h3>")
    table = told[: told.index("</table>")]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in table.split("<tr>")[1:]]
    assert rows[0][1:] == [" and ".join(stage["members"]) for stage in made["stages"]]
    shown = {name: [float(share.rstrip("%")) for share in shares] for name, *shares in rows[1:]}
    assert shown.pop("all inputs") == pytest.approx(
        [100 * share for share in made["test"]["answered"]], abs=0.05
    )
    assert len(shown) == 10, "digits"
    for name, shares in shown.items():
        wanted = made["test"]["answered_by_class"][name.removeprefix("class ")]
        assert shares == pytest.approx([100 * share for share in wanted], abs=0.05)
        assert sum(shares) == pytest.approx(100, abs=0.11)
    assert f"0.6 ms on average: {'' if made['kept'] else 'not '}kept on test" in page


def test_mlflow_knows_it(finished: RunFolder, made: dict[str, Any], tmp_path: Path) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track(finished.root, uri, "cascades")["trials"] == 3
    client = mlflow.MlflowClient(uri)
    place = client.get_experiment_by_name("cascades").experiment_id
    (run,) = client.search_runs([place], "tags.phase = 'cascade'")
    assert run.data.metrics["latency_ratio"] == made["latency"]["cascade"]["ratio"]
    assert run.data.params["method"] == "cascade"


def trials_of(made: dict[str, Any]) -> list[int | None]:
    return [number for stage in made["stages"] for number in stage["trials"]]


def test_its_recipe_makes_the_same_files_again(
    finished: RunFolder, made: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    told = recipes.export(str(finished.root), str(made["trial"]), path)
    assert told["trial"] == made["trial"]
    replay.apply(path, tmp_path / "files", None, None)
    replay.apply(path, tmp_path / "one.onnx", None, None)
    inputs = digits().test.inputs().numpy()
    first, again = Cascade(Path(made["manifest"]).parent), Cascade(tmp_path / "files")
    name = first.get_inputs()[0].name
    (outputs,), places = first.answer({name: inputs})
    (found,), same = again.answer({name: inputs})
    np.testing.assert_array_equal(same, places)
    np.testing.assert_array_equal(found, outputs)
    one = file_logits(tmp_path / "one.onnx", inputs[:1])
    np.testing.assert_allclose(one, outputs[0], rtol=1e-5, atol=1e-5)
    # the machine may be busy with other tests: of the reasons only those about accuracy count
    check = replay.check(path, None, None)
    assert check["accuracy"] == pytest.approx(made["test"]["accuracy"])
    assert not [r for r in check["reasons"] if "accuracy" in r]
    data = yaml.safe_load(path.read_text())
    data["measurement"]["values"]["accuracy"] -= 0.05
    forged = tmp_path / "forged.yaml"
    forged.write_text(yaml.safe_dump(data))
    assert "accuracy" in replay.check(forged, None, None)["reasons"][0]
    with pytest.raises(InputError, match="several models"):
        apply(path)
    data["cascade"]["stages"][0]["recipes"] = ["../elsewhere.yaml"]
    forged.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="bare name"):
        replay.apply(forged, tmp_path / "none", None, None)


def test_a_study_makes_one_as_its_last_phase(
    finished: RunFolder, made: dict[str, Any], tmp_path: Path
) -> None:
    """Members are the run's own; a resumed run keeps the cascade and makes no other."""
    shutil.copytree(finished.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    lines = folder.trials.read_text().splitlines(keepends=True)
    folder.trials.write_text("".join(lines[:2]))
    study = study_of(
        2,
        dynamic={"mean_latency": "0.6ms"},
        tracking={"mlflow": False},
        search={"random_references": 0},
    )
    for _ in range(2):
        done = run_study(read_study(study), folder.root, resume=True)
        kinds = [t.phase.kind for t in done.view.trials]
        assert kinds.count("cascade") == 1
        assert len(done.summary["cascades"]) == 1
        assert done.view.best is None or done.view.best.phase.kind != "cascade"


def test_answers_are_kept_for_the_next_time(finished: RunFolder, made: dict[str, Any]) -> None:
    kept = sorted((finished.root / "cascade" / "answers").iterdir())
    assert len(kept) >= 3
    before = [(p, p.stat().st_mtime_ns) for p in kept]
    other = finished.root.parent / "elsewhere"
    again = cascade(str(finished.root), Asked(mean_ms=0.6), other, early_exits=False)
    assert [(p, p.stat().st_mtime_ns) for p in kept] == before
    assert again["stages"] == made["stages"]
    assert again["test"] == made["test"]
    assert (finished.root.parent / "elsewhere" / "cascade.json").is_file()


def test_a_member_that_is_rebuilt_as_another_is_left_out(
    finished: RunFolder, made: dict[str, Any]
) -> None:
    view = RunView.load(finished)
    other, rest = view.entries[0], view.entries[1:]
    assert other.trial.measurement is not None
    wrong = {**other.trial.measurement.context, "hits": "AA" * 30}
    found = replace(other.trial.measurement, context=wrong)
    first = replace(other, trial=replace(other.trial, measurement=found))
    view = replace(view, entries=(first, *rest))
    place = finished.root / "cascade"
    parts = assemble(read_study(finished.read_study()), place)
    members = RunMembers(finished, view, parts, place)
    judged = members.judged(halves(len(parts.data.val))[0])
    assert [m.trial for m in judged] == [1, None]
    assert "otherwise than it was measured" in members.left_out["trial 0"]


def test_with_little_time_the_best_are_built_again(finished: RunFolder, tmp_path: Path) -> None:
    """Those of the front first, and the most accurate of them."""
    view = RunView.load(finished)
    parts = assemble(read_study(finished.read_study()), tmp_path)
    assert {t.number for t in view.front} == {0, 1}
    for most, wanted in ((None, [0, 1]), (2, [0, 1]), (1, [1])):
        members = RunMembers(finished, view, parts, tmp_path, most=most)
        assert [t.number for t in members.trials()] == wanted
    without = replace(view, entries=tuple(reversed(view.entries)))  # order is the run's
    assert [t.number for t in RunMembers(finished, without, parts, tmp_path, most=1).trials()] == [
        1
    ]


def test_a_task_without_confidence_is_refused(finished: RunFolder) -> None:
    parts = assemble(read_study(finished.read_study()), finished.models)
    task = replace(parts.task, class_scores=None, name="own task")
    parts.data = replace(parts.data, task=task)
    with pytest.raises(InputError, match=r"own task.*does not say how sure"):
        class_scores(parts)


def test_a_study_whose_cascade_fails_ends_with_its_answer(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the runtime gave up")

    monkeypatch.setattr("autocompress.run.cascade_phase.make_cascade", broken)
    study = study_of(2, dynamic={"mean_latency": "0.6ms"}, tracking={"mlflow": False})
    kept = [line for line in folder.trials.read_text().splitlines() if '"cascade"' not in line]
    folder.trials.write_text("".join(f"{line}\n" for line in kept))
    done = run_study(read_study(study), folder.root, resume=True)
    assert done.summary["unfinished"] == [
        "the cascade: its code stops with an error (RuntimeError: the runtime gave up)"
    ]
    assert folder.report.is_file()


def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_built(
    finished: RunFolder, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.root, copy, ignore=shutil.ignore_patterns("cascade"))
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(InputError, match=r"taken is no folder\. Give another path"):
        cascade(str(copy), Asked(most_lost=0.05), taken)
    assert taken.read_text() == "mine"
    assert not (copy / "cascade").exists()


def test_a_val_too_small_is_refused_before_anything_is_built(
    finished: RunFolder, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.root, copy, ignore=shutil.ignore_patterns("cascade"))
    with pytest.raises(InputError, match=r"with 180 inputs.* 3014 in val"):
        cascade(str(copy), Asked(most_lost=0.002))
    assert not (copy / "cascade" / "answers").exists()
    study = read_study(study_of(2, dynamic={"min_accuracy": "0.2%"}))
    with pytest.raises(InputError, match=r"with 180 inputs.* 3014 in val"):
        run_study(study, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_holds_one_cascade_whole(
    finished: RunFolder, made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is ended while it is measured leaves the one before; what is others' stays."""
    shutil.copytree(finished.root, tmp_path / "run")
    best = tmp_path / "run" / "cascade" / "best"
    (best / "notes.txt").write_text("mine")
    before, run = contents(best), str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(cascading, "timed", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cascade(run, Asked(mean_ms=0.3), early_exits=False)
    assert contents(best) == before
    earlier = Manifest.load(best)  # another one's, of whose members one is in none of ours
    first = replace(earlier.stages[0], files=("trial-99.onnx",))
    replace(earlier, stages=(first, *earlier.stages[1:])).save(best)
    (best / "trial-99.onnx").write_bytes(b"a member of that one")
    (best / "cascade.onnx").write_bytes(b"of another cascade")
    refused = ExportError("they do not fit")
    monkeypatch.setattr(onnx_cascade, "write_cascade", Mock(side_effect=refused))
    other = cascade(run, Asked(mean_ms=0.6), early_exits=False)
    assert (other["one_file"], other["no_one_file"]) == (None, "they do not fit")
    assert contents(best).keys() == before.keys() - {"cascade.onnx"}
    assert made["stages"] == other["stages"]


@pytest.mark.parametrize("damage", [b"", b"text", b"half"])
def test_damaged_answers_are_named(
    finished: RunFolder, made: dict[str, Any], damage: bytes
) -> None:
    path = finished.root / "cascade" / "answers" / "uncompressed-val.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
    try:
        with pytest.raises(InputError, match=r"uncompressed-val\.npy is damaged.* Delete it"):
            cascade(str(finished.root), Asked(mean_ms=0.6))
        np.save(path, np.zeros((7, 10), np.float32))
        with pytest.raises(InputError, match=r"360 inputs.*\(7, 10\)"):
            cascade(str(finished.root), Asked(mean_ms=0.6))
    finally:
        path.write_bytes(whole)


def test_paths_are_shown_as_they_are(made: dict[str, Any]) -> None:
    """What looks like a colour in the name of a folder is part of it."""
    console = Console(width=200, record=True, file=io.StringIO())
    show_cascade({**made, "manifest": "a[bold]b/cascade.json", "one_file": "a[red]b"}, console)
    assert "Cascade('a[bold]b/cascade.json')" in (text := console.export_text())
    assert "a[red]b" in text


def test_a_run_on_another_model_is_refused_with_a_remedy(
    finished: RunFolder, tmp_path: Path
) -> None:
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(finished.root, copy.root)
    factory = {"factory": "autocompress.workloads.models:digits_resnet", "args": {"width": 8}}
    copy.write_study({**finished.read_study(), "model": factory, "baseline": None})
    with pytest.raises(InputError, match=r"was made on .*Put back what it was made on"):
        cascade(str(copy.root), Asked(most_lost=0.05))

"""Study files: typed once, read as before, and every mistake said with its place and remedy."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from autocompress.errors import InputError
from autocompress.policy.policy import Distill
from autocompress.policy.recipe import Recipe
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.study import StudyConfig, load_study, read_study, shipped
from autocompress.targets import read_config
from autocompress.track.folder import RunFolder

FIXTURES = Path(__file__).parent.parent / "fixtures" / "run_0_1"
LEAST: dict[str, Any] = {
    "name": "x",
    "model": {"factory": "a:b"},
    "data": {"factory": "a:b"},
}


@pytest.mark.parametrize("name", shipped("studies"))
def test_plain_data_of_a_study_reads_as_the_same_study(name: str) -> None:
    study = load_study(name)
    plain = json.loads(json.dumps(study.model_dump(mode="json")))
    again = read_study(plain)
    assert again == study
    given = study.recovery.distillation.model_fields_set
    assert again.recovery.distillation.model_fields_set == given
    assert study.changed(workers=2).changed(workers=1) == study


def test_studies_and_recipes_of_version_0_1_read_as_before() -> None:
    written = load_study(FIXTURES / "study.yaml")
    resolved = read_study(RunFolder(FIXTURES / "run").read_study())
    recipe = read_study(Recipe.load(FIXTURES / "recipe.yaml").study)
    # some defaults of what the study leaves open are others now; runs and recipes say theirs
    assert resolved.settings.weight_rounding == recipe.settings.weight_rounding == "nearest"
    theirs = {"weight_rounding": "nearest", "calibration_images": 512, "sequential_images": 1024}
    theirs |= {"weight_range": "full", "equalization": False}
    assert resolved.recovery.qat is recipe.recovery.qat is True
    written = written.changed(settings=theirs, recovery={"qat": True})
    assert written == resolved
    assert written == recipe
    assert recipe.settings.weight_range == "full"  # what files meant that did not say
    assert not recipe.settings.equalization
    assert (written.search.trials, written.search.timeout_s) == (8, None)
    assert (written.search.candidates, written.search.screen_images) == (2, 64)
    assert (written.recovery.schedule.batch_size, written.recovery.schedule.lr) == (64, 0.02)


def test_sections_are_typed_and_written_back_as_they_were_given() -> None:
    study = read_study(
        {
            **LEAST,
            "baseline": {"schedule": {"epochs": 3}},
            "space": {"rules": [{"match": "a", "prune_ratio": 0.5, "pattern": None}]},
            "recovery": {"distillation": {"weight": 0.7, "teachers": [{"factory": "t:t"}]}},
        }
    )
    assert study.baseline is not None
    assert study.baseline.schedule.epochs == 3
    assert isinstance(study.space, SpaceConfig)
    assert study.space_config() is study.space
    (rule,) = study.space.rules
    assert (rule.match, rule.prune_ratio, rule.pattern) == (("a",), (0.5,), (None,))
    asked = Distill(temperature=3.0, weight=0.1)
    for one in (study, study.changed(search={"trials": 3})):
        assert one.recovery.distillation.over(asked) == Distill(temperature=3.0, weight=0.7)
    assert set(study.model_dump(mode="json")["recovery"]["distillation"]) == {"weight", "teachers"}


def _with(path: str, value: Any) -> dict[str, Any]:
    """The least study with a value laid at a dotted path."""
    study: dict[str, Any] = yaml.safe_load(yaml.safe_dump(LEAST))
    *sections, last = path.split(".")
    here = study
    for name in sections:
        here = here.setdefault(name, {})
    here[last] = value
    return study


RULE = {"match": "*", "prune_ratio": [0, 0.5]}


@pytest.mark.parametrize(
    ("path", "value", "at", "says"),
    [
        ("serch", {}, "serch", "did you mean 'search'"),
        ("model.chekpoint", "w", "model.chekpoint", "did you mean 'checkpoint'"),
        ("search.trils", 3, "search.trils", "did you mean 'trials'"),
        ("baseline.schedule.epoch", 3, "baseline.schedule.epoch", "did you mean 'epochs'"),
        ("recovery.schedule.batchsize", 3, "recovery.schedule.batchsize", "'batch_size'"),
        ("recovery.distillation.temprature", 3, "recovery.distillation.temp", "'temperature'"),
        (
            "recovery.distillation.teachers",
            [{"factory": "a:b"}, {"factry": "a:b"}],
            "recovery.distillation.teachers.1.factry",
            "did you mean 'factory'",
        ),
        ("recovery.schedule.lr)", 1, "recovery.schedule.lr)", "did you mean 'lr'"),
        ("space.ruls", [RULE], "space.ruls", "did you mean 'rules'"),
        ("space.rules", [RULE, {"prune_rato": 0}], "space.rules.1.prune_rato", "'prune_ratio'"),
        ("target.runtim", "onnxruntime", "target", "did you mean 'runtime'"),
        ("model", {}, "model.factory", "`package.module:function`"),
        ("model", {"args": {}}, "model.factory", "`package.module:function`"),
        ("space", {"name": "s"}, "space.rules", "later rules override"),
        (
            "recovery.distillation.teachers",
            [{"args": {}}],
            "recovery.distillation.teachers.0.factory",
            "`package.module:function`",
        ),
        ("search.objectives", 3, "search.objectives", "should be a list"),
        ("recovery.schedule.augment", ["crp"], "recovery.schedule.augment.0", "mean 'crop'"),
        ("recovery.schedule.lr", 0, "recovery.schedule.lr", "greater than 0, got 0"),
        ("space.rules", [{"weight_bits": [32, 7]}], "space.rules.0.weight_bits.1", "got 7"),
        ("space.rules", [{"prune_ratio": 1}], "space.rules.0.prune_ratio.0", "less than 1"),
        ("space.rules", [{"factorization": "tucker"}], "space.rules.0.factorization", "'tucker2'"),
        ("space.rules", "all", "space.rules", "should be a list"),
        ("search", 5, "search", "must be a mapping, got 5"),
        ("space", 5, "space", "must be a mapping, got 5"),
        ("model.args", {3: "x"}, "model.args.3", "must be text; put it into quotes"),
        ("budget", ["latecy<=1"], "latecy", "did you mean 'latency'"),
        ("target.runtime", "onnxruntim", "onnxruntim", "did you mean 'onnxruntime'"),
    ],
)
def test_a_mistake_names_its_place_and_the_nearest(
    tmp_path: Path, path: str, value: Any, at: str, says: str
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(_with(path, value)))
    with pytest.raises(InputError) as caught:
        load_study(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert at in message
    assert says in message


def test_mistakes_in_a_space_file_and_in_a_policy_file_are_said_alike(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"rules": [RULE, {"kind": "conv"}]}))
    with pytest.raises(InputError, match=r"space.yaml .*'rules\.1\.kind'; did you mean 'kinds'"):
        SpaceConfig.load(space)
    recipe = yaml.safe_load((FIXTURES / "recipe.yaml").read_text())
    path = tmp_path / "recipe.yaml"
    for change, says in (
        ({"layers": {"conv1": {"prune_rato": 0.5}}}, r"layers\.conv1\.prune_rato.*'prune_ratio'"),
        (
            {"layers": {"conv1": {"prune_ratio": 2}}},
            r"`policy.layers.conv1`: `prune_ratio` must be in \[0, 1\), got 2\.0\.$",
        ),
        ({"layers": {0: {}}}, "`policy.layers.0` must be text"),
        ({"layer": {}}, "did you mean 'layers'"),
    ):
        path.write_text(yaml.safe_dump({**recipe, "policy": change}))
        with pytest.raises(InputError, match=says):
            Recipe.load(path)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (
            {"threds": 1},
            "`target` with the runtime 'onnxruntime'.*'target.threds'; did you mean 'threads'",
        ),
        ({"runtime": "torch", "compil": True}, "did you mean 'compile'"),
        (
            {"runtime": "torch", "providers": ["x"]},
            "runtime 'torch' has an unknown key 'target.providers'",
        ),
        ({"threads": 0}, "`target.threads`: .*greater than or equal to 1, got 0"),
        ({"lengths": {"ids": -1}}, "lengths"),
        ({"runtime": "onnxruntim"}, "did you mean 'onnxruntime'"),
        ({"runtime": "${R}", "threds": 1}, "did you mean 'threads'"),
        ({"runtime": "${R}", "threads": 0}, "got 0"),
    ],
)
def test_a_target_is_checked_whether_it_holds_a_variable_or_not(
    target: dict[str, Any], says: str
) -> None:
    for section in (target, {**target, "table": "${FOO}"}):
        with pytest.raises(InputError, match=says):
            read_study(_with("target", section))


def test_variables_of_a_target_are_looked_up_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = {"runtime": "${R}", "threads": "${N}", "lengths": {"ids": ["${L}", 3]}}
    study = read_study(_with("target", written))
    assert study.model_dump(mode="json")["target"] == written
    with pytest.raises(InputError, match="variable R"):
        study.target.config()
    for name, value in {"R": "torch", "N": "3", "L": "5"}.items():
        monkeypatch.setenv(name, value)
    plain = {"runtime": "torch", "threads": 3, "lengths": {"ids": [5, 3]}}
    assert study.target.config() == read_config(plain)
    monkeypatch.setenv("N", "none")
    with pytest.raises(InputError, match="threads"):
        study.target.config()


def test_a_study_goes_to_other_processes_with_its_target() -> None:
    study = read_study(_with("target", {"runtime": "torch", "compile": True, "table": "${T}"}))
    assert pickle.loads(pickle.dumps(study)) == study
    assert study.changed(target={"runtime": "openvino", "compile": False}).target.model_dump() == {
        "runtime": "openvino",
        "compile": False,
        "table": "${T}",
    }


def test_the_same_reader_takes_objects_that_were_read() -> None:
    study = load_study("quickstart")
    built = StudyConfig(name="x", model=study.model, data=study.data, search=study.search)
    assert built.search is study.search


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", "a\\b", ".", "..", "", "a\nb", "\x1b[31m", "x" * 101]
)
def test_a_name_is_one_part_of_a_path(name: str) -> None:
    """It names the run's folder, which a stranger's study must not put elsewhere."""
    study = load_study("quickstart").model_dump(mode="json")
    with pytest.raises(InputError, match="`name`: must be 1 to 100 printable characters") as told:
        read_study({**study, "name": name})
    assert len(str(told.value)) < 300
    assert read_study({**study, "name": "net 2.b-\u00e9"}).name == "net 2.b-\u00e9"


@pytest.mark.parametrize(("asked", "hint"), [("quickstrat", True), ("0", False)])
def test_an_unknown_study_is_told_what_there_is_once(asked: str, hint: bool) -> None:
    with pytest.raises(InputError) as told:
        load_study(asked)
    text = str(told.value)
    assert ("did you mean 'quickstart'" in text) == hint
    listed = text.partition("Shipped: ")[2]
    assert listed.rstrip(".").split(", ") == sorted(shipped("studies"))
    assert text.count("cifar10_vgg16") == 1

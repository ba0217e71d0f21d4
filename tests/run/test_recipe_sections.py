"""What recipes of strangers hold is checked when they are opened, before anything is built."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from autocompress.api import SavedRecipe
from autocompress.build.state import reading_weights
from autocompress.cli import app
from autocompress.errors import InputError
from autocompress.policy.recipe import Recipe
from autocompress.run.replay import apply, load_recipe
from autocompress.run.schema import schema

FIXTURES = Path(__file__).parent.parent / "fixtures" / "run_0_1"
WHOLE = yaml.safe_load((FIXTURES / "recipe.yaml").read_text())
MISTAKES: list[tuple[str, Any, str]] = [
    ("measurement", {}, r"lacks `measurement\.values`"),
    ("baseline", {}, r"lacks `baseline\.values`"),
    ("measurement.values", "x", r"`measurement\.values`"),
    ("measurement.values.latency_ms", "0.1", r"`measurement\.values\.latency_ms`"),
    ("measurement.values.latency_ms", True, r"`measurement\.values\.latency_ms`"),
    ("measurement.spread", [1], r"`measurement\.spread`"),
    ("measurement.context", 3, r"`measurement\.context`"),
    ("measurement.context.timing", {"ratio": "x"}, r"`measurement\.context\.timing\.ratio`"),
    ("measurement.metrics", [{"name": "mae"}], r"lacks `measurement\.metrics\.0\.unit`"),
    ("recovery.epochs", "x", r"`recovery\.epochs`"),
    ("recovery.epochs", -1, r"`recovery\.epochs`"),
    ("recovery.epocs", 1, r"'recovery\.epocs'; did you mean 'epochs'"),
    ("recovery.split", "train", r"`recovery\.split`"),
    ("target.threads", 0, r"`target\.threads`"),
    ("environment.torch", [2], r"`environment\.torch`"),
    ("study", 5, "`study` must be a mapping"),
]
BY_STUDY_OR_CLAIM: list[tuple[str, Any, str]] = [
    ("study.model", {}, r"`study` lacks `model\.factory`"),
    ("study.target", {"threads": 0}, "`study`.*threads"),
    ("study.serch", {}, "`study` has an unknown key 'serch'; did you mean 'search'"),
    ("baseline.values.latency_ms", 0, "`baseline` claims no latency above 0"),
    ("measurement.values", {"accuracy": 0.5}, "`measurement` claims no latency above 0"),
    ("measurement.values.acuracy", 0.5, "`measurement`.*did you mean 'accuracy'"),
]


STAGES: list[dict[str, Any]] = [
    {"recipes": ["small.yaml"], "temperatures": [1.0], "threshold": 0.5},
    {"recipes": ["large.yaml"], "temperatures": [1.0]},
]


def cascaded(*, last: str = "large.yaml", output: int = 0, **first: Any) -> dict[str, Any]:
    """The section of a cascade with another first stage."""
    stages = [{**STAGES[0], **first}, {**STAGES[1], "recipes": [last]}]
    return {"confidence": "margin", "scores": "softmax", "output": output, "stages": stages}


BY_STUDY_OR_CLAIM += [
    ("cascade", {**cascaded(), "stages": []}, "`cascade`: .*there must be two"),
    ("cascade", cascaded(threshold=None), "`cascade`: .*needs a threshold"),
    ("cascade", cascaded(temperatures=[-1.0]), "`cascade`: .*above 0 and finite"),
    ("cascade", cascaded(temperatures=[]), "`cascade`: .*a temperature for each"),
    ("cascade", cascaded(takes="features"), "`cascade`: `takes: features` needs"),
    ("cascade", cascaded(output=10**9), "`cascade`: `output` must be"),
    ("cascade", cascaded(recipes=["cascade.yaml"]), "none may be called cascade"),
    ("cascade", cascaded(recipes=["a.yaml"], last="a.yml"), "differ in more"),
    ("cascade", cascaded(recipes=["../small.yaml"]), "bare name"),
]


def changed(path: str, value: Any) -> dict[str, Any]:
    whole: dict[str, Any] = copy.deepcopy(WHOLE)
    *parents, last = path.split(".")
    part = whole
    for parent in parents:
        part = part[parent]
    part[last] = value
    return whole


def saved(folder: Path, whole: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


@pytest.mark.parametrize(("path", "value", "says"), MISTAKES)
def test_a_wrong_section_is_refused_by_reader_and_schema(
    tmp_path: Path, path: str, value: Any, says: str
) -> None:
    file = saved(tmp_path, changed(path, value))
    with pytest.raises(InputError, match=says) as caught:
        Recipe.load(file)
    assert str(caught.value).startswith(str(file))
    assert not Draft202012Validator(schema("recipe")).is_valid(changed(path, value))


@pytest.mark.parametrize("output", ["model.safetensors", "model.pt2", "taken", "taken/one.onnx"])
def test_a_cascade_is_written_to_a_folder_or_one_file(tmp_path: Path, output: str) -> None:
    (tmp_path / "taken").write_text("mine")
    for name in ("small.yaml", "large.yaml"):
        saved(tmp_path, WHOLE).rename(tmp_path / name)
    file = saved(tmp_path, changed("cascade", cascaded()))
    with pytest.raises(InputError, match="Give another path"):
        apply(file, tmp_path / output, None, None)


def test_members_of_a_cascade_are_looked_for_before_anything_is_built(tmp_path: Path) -> None:
    saved(tmp_path, WHOLE).rename(tmp_path / "large.yaml")
    file = saved(tmp_path, changed("cascade", cascaded()))
    with pytest.raises(InputError, match=r"no recipe at .*small\.yaml"):
        load_recipe(file)
    for other in (changed("model.weights", "0" * 16), changed("cascade", cascaded())):
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(other))
        with pytest.raises(
            InputError, match=r"small\.yaml is no recipe of the cascade's own model"
        ):
            load_recipe(file)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(WHOLE))
    assert load_recipe(file).cascade is not None


@pytest.mark.parametrize("command", ["apply", "verify"])
@pytest.mark.parametrize(("path", "value", "says"), [*BY_STUDY_OR_CLAIM, *MISTAKES[:2]])
def test_commands_refuse_it_as_bad_input_before_they_build(
    tmp_path: Path, path: str, value: Any, says: str, command: str
) -> None:
    file = saved(tmp_path, changed(path, value))
    with pytest.raises(InputError, match=says):
        load_recipe(file)
    more = ["-o", str(tmp_path / "model.onnx")] if command == "apply" else []
    done = CliRunner().invoke(app, [command, str(file), *more])
    assert isinstance(done.exception, InputError)
    assert done.exception.exit_code == 2


def test_an_earlier_recipe_is_kept_as_it_was_written() -> None:
    recipe = load_recipe(FIXTURES / "recipe.yaml")
    for name in ("measurement", "baseline", "recovery", "target", "environment"):
        assert recipe.model_dump(mode="json")[name] == WHOLE[name]
    whole = Recipe.read(changed("measurement.values.macs", 367424)).model_dump(mode="json")
    assert repr(whole["measurement"]["values"]["macs"]) == "367424"  # without a point, as it was


def test_a_recipe_is_refined_as_when_it_was_written() -> None:
    asked = {"images": 100, "steps": 5, "lr": 0.01}
    before = Recipe.read(changed("settings.refine", asked)).settings.refine
    assert (before.network_images, before.network_lr) == (100, 0.005)
    assert before.batch_norms == "kept"
    own = {"network_images": "auto", "network_lr": 0.02, "batch_norms": "batch"}
    now = Recipe.read(changed("settings.refine", {**asked, **own})).settings.refine
    assert {name: getattr(now, name) for name in own} == own


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "C:x", "x\0"]
)
def test_weights_lie_beside_the_recipe(name: str) -> None:
    with pytest.raises(InputError, match=r"beside the recipe.* write only their name"):
        Recipe.read({**WHOLE, "weights": name})


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8, None])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recipe.safetensors"
    whole = (FIXTURES / "recipe.safetensors").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with (
        pytest.raises(InputError, match=r"recipe\.safetensors is not readable.*Copy it again"),
        reading_weights(path),
    ):
        pass


def test_a_recipe_whose_weights_are_gone_is_not_copied(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "recipe.yaml", tmp_path)
    with pytest.raises(InputError, match=r"recipe\.safetensors of the recipe are missing"):
        SavedRecipe(tmp_path / "recipe.yaml").save(tmp_path / "again.yaml")
    assert not (tmp_path / "again.yaml").exists()

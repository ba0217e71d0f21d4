"""A run goes on with the defaults that it began with, and with nothing else that changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autocompress.errors import InputError
from autocompress.policy.recipe import Recipe
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.factories import from_elsewhere
from autocompress.run.recipes import export
from autocompress.run.resuming import as_begun, known_baseline
from autocompress.run.study import load_study, read_study
from autocompress.targets.onnx_runtime import OnnxRuntimeTarget
from autocompress.track.folder import RunFolder

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_0_1"
_OF_0_1 = {
    "weight_rounding": "nearest",
    "weight_range": "full",
    "equalization": False,
    "calibration_images": 512,
    "sequential_images": 1024,
}
"""What that version did where its study left it open."""
_LEAST: dict[str, Any] = {"name": "x", "model": {"factory": "a:b"}, "data": {"factory": "a:b"}}


@pytest.mark.parametrize(
    ("began", "asked", "goes_on"),
    [
        # the defaults of that time, also those that it had no word for
        ({}, {}, _OF_0_1),
        # what the study says stays what it says, and is compared later on
        ({}, {"weight_rounding": "gptq"}, {**_OF_0_1, "weight_rounding": "gptq"}),
        ({"calibration_images": 64}, {"calibration_images": 64}, {"equalization": False}),
        # a setting that the user took back is a change, not an old default
        ({"weight_rounding": "gptq"}, {}, {"weight_rounding": "auto"}),
        ({"finish": "refine", "seed": 3}, {}, {"finish": "sequential", "seed": 0}),
    ],
)
def test_the_defaults_of_the_first_version_are_carried_on(
    began: dict[str, Any], asked: dict[str, Any], goes_on: dict[str, Any], tmp_path: Path
) -> None:
    folder = RunFolder.create(tmp_path / "run")
    written = yaml.safe_load((FIXTURE / "run" / "study.yaml").read_text())
    folder.write_study({**written, "settings": {**written["settings"], **began}})
    study = read_study({**_LEAST, "settings": asked})
    found = as_begun(study, folder)
    assert {key: getattr(found.settings, key) for key in goes_on} == goes_on
    folder.write_study(found.model_dump(mode="json"))  # as the run that goes on does
    assert as_begun(study, folder) == found, "a second time nothing else comes out"


@pytest.mark.parametrize("settled", ["full", "reduced"])
def test_what_a_run_of_today_began_with_is_no_former_default(tmp_path: Path, settled: str) -> None:
    """`weight_range: auto` comes to `full` on some processors; another may need `reduced`."""
    folder, study = RunFolder.create(tmp_path / "run"), read_study(_LEAST)
    written = study.changed(settings={"weight_range": settled})
    folder.write_study(written.model_dump(mode="json"))
    assert as_begun(study, folder) == study


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Assembly]:
    """The fixture's study, about to go on where products of 8 bits overflow."""
    monkeypatch.chdir(FIXTURE)
    monkeypatch.setattr(OnnxRuntimeTarget, "products_overflow", lambda self: True)
    study = as_begun(load_study("study.yaml"), RunFolder(FIXTURE / "run"))
    with from_elsewhere("study", trust=True):
        yield assemble(study, tmp_path / "models")


def test_a_run_goes_on_with_the_levels_that_its_trials_were_rounded_to(parts: Assembly) -> None:
    folder = RunFolder(FIXTURE / "run")
    assert parts.study.settings.weight_range == "full"
    assert {k: getattr(parts.study.settings, k) for k in _OF_0_1} == _OF_0_1
    assert known_baseline(folder, parts) == folder.read_baseline()


def test_a_setting_that_a_file_leaves_unsaid_is_compared(parts: Assembly) -> None:
    """Trials of both would stand side by side, rounded in two ways."""
    chosen = {"weight_range": "reduced", "equalization": True}
    settings = parts.study.settings.model_copy(update=chosen)
    now = replace(parts, study=parts.study.model_copy(update={"settings": settings}))
    with pytest.raises(InputError, match="weight_range 'full', now 'reduced'") as refused:
        known_baseline(RunFolder(FIXTURE / "run"), now)
    assert "equalization False, now True" in str(refused.value)


def test_a_recipe_of_an_old_run_says_how_its_trials_were_made(tmp_path: Path) -> None:
    export(str(FIXTURE / "run"), "fastest", tmp_path / "fastest.yaml")
    for recipe in (Recipe.load(tmp_path / "fastest.yaml"), Recipe.load(FIXTURE / "fastest.yaml")):
        assert {k: getattr(recipe.settings, k) for k in _OF_0_1} == _OF_0_1
        assert {k: recipe.study["settings"][k] for k in _OF_0_1} == _OF_0_1


def test_a_folder_without_a_run_changes_nothing(tmp_path: Path) -> None:
    study = read_study(_LEAST)
    assert as_begun(study, RunFolder(tmp_path / "none")) == study

"""A run goes on with the defaults that it began with, and with nothing else that changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from finished_run import finished_run

from autocompress.errors import InputError
from autocompress.policy.recipe import Recipe
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.factories import from_elsewhere
from autocompress.run.recipes import export
from autocompress.run.resuming import as_begun, differences, known_baseline
from autocompress.run.session import run_study
from autocompress.run.study import load_study, read_study
from autocompress.targets.onnx_runtime import OnnxRuntimeTarget
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

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


@pytest.mark.parametrize("finish", ["sequential", "refine"])
def test_how_to_refine_is_compared_where_a_run_refines(
    finish: str, parts: Assembly, tmp_path: Path
) -> None:
    """An earlier version taught at temperature 1 and had no word for it."""
    folder = RunFolder.create(tmp_path / "run")
    folder.write_baseline(RunFolder(FIXTURE / "run").read_baseline())
    settings = parts.study.settings.model_copy(update={"finish": finish})
    study = parts.study.model_copy(update={"settings": settings})
    written = study.model_dump(mode="json")
    del written["settings"]["refine"]["temperature"]
    folder.write_study(written)
    assert read_study(folder.read_study()).settings.refine.temperature == 1.0
    found = differences(folder.read_baseline(), folder.read_study(), replace(parts, study=study))
    assert len(found) == (1 if finish == "refine" else 0)
    assert all("refine" in text and "'temperature': 1.0" in text for text in found)


def test_a_recipe_of_an_old_run_says_how_its_trials_were_made(tmp_path: Path) -> None:
    export(str(FIXTURE / "run"), "fastest", tmp_path / "fastest.yaml")
    for recipe in (Recipe.load(tmp_path / "fastest.yaml"), Recipe.load(FIXTURE / "fastest.yaml")):
        assert {k: getattr(recipe.settings, k) for k in _OF_0_1} == _OF_0_1
        assert {k: recipe.study["settings"][k] for k in _OF_0_1} == _OF_0_1


def test_a_folder_without_a_run_changes_nothing(tmp_path: Path) -> None:
    study = read_study(_LEAST)
    assert as_begun(study, RunFolder(tmp_path / "none")) == study


class _OfADevice:
    """Parts of a study on a device, as far as they are compared."""

    identity: ClassVar[dict[str, str]] = {"architecture": "a", "weights": "w", "data": "d"}
    earlier = None

    def __init__(self, target: dict[str, Any], measurer: Any) -> None:
        self.study = read_study({**_LEAST, "target": target})
        self.evaluator = SimpleNamespace(measurer=measurer)


def of_device(target: dict[str, Any], was: dict[str, Any], measurer: Any) -> list[str]:
    parts: Any = _OfADevice(target, measurer)
    before: Any = SimpleNamespace(context={"target": was})
    return differences(before, parts.study.model_dump(mode="json"), parts)


@pytest.mark.parametrize(
    ("was", "says"),
    [
        ({"digest": "a", "placed": {"by": "board", "error": 0.1}}, ""),
        ({"digest": "b", "placed": {"by": "board", "error": 0.1}}, "table.json has changed"),
        ({"digest": "a", "placed": {"by": "phone", "error": 0.1}}, "of phone, which now resembles"),
        ({"digest": "a"}, "of None, which now resembles board"),
        ({"machine": {}}, ""),  # written when no digest was kept
    ],
)
def test_a_run_goes_on_with_the_table_that_it_began_with(was: dict[str, Any], says: str) -> None:
    facts = {"digest": "a", "placed": {"by": "board", "error": 0.2}}
    measurer = SimpleNamespace(other_device=SimpleNamespace(facts=facts))
    found = of_device({"table": "table.json"}, {"table": was}, measurer)
    assert len(found) == bool(says)
    assert says in "".join(found)


@pytest.mark.parametrize(
    ("was", "says"),
    [
        ({"cpu": "A76", "cores": 4, "name": "pi"}, ""),
        ({"cpu": "A72", "cores": 4, "name": "pi"}, "another device at ssh://pi (cpu 'A72', now"),
        ({"cpu": "A76", "cores": 8}, "cores 8, now 4"),
        ({}, ""),
    ],
)
def test_a_run_goes_on_with_the_device_that_it_began_with(was: dict[str, Any], says: str) -> None:
    target = SimpleNamespace(machine=lambda: {"cpu": "A76", "cores": 4, "name": "other"})
    measurer = SimpleNamespace(other_device=None, target=target)
    found = of_device({"device": "ssh://pi"}, {"machine": was}, measurer)
    assert len(found) == bool(says)
    assert says in "".join(found)


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("throughput>=1.1x", "without throughput.*--new-baseline"),
        ("memory<=1x", "without peak memory.*--new-baseline"),
        ("latency_worst<=0.9x", "also_on"),
    ],
)
def test_a_limit_on_what_a_run_never_measured_leaves_the_run_as_it_is(
    limit: str, says: str, tmp_path: Path
) -> None:
    run = finished_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in sorted(run.root.rglob("*")) if path.is_file()}
    study = read_study({**run.read_study(), "budget": [limit]})
    with pytest.raises(InputError, match=says):
        run_study(study, run.root, resume=True)
    kept = {path: path.read_bytes() for path in before}
    assert kept == before
    assert RunView.load(run).front

"""A run goes on with the defaults that it began with, and with nothing else that changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autocompress.run.resuming import as_begun
from autocompress.run.study import read_study
from autocompress.track.folder import RunFolder

_LEAST: dict[str, Any] = {"name": "x", "model": {"factory": "a:b"}, "data": {"factory": "a:b"}}


@pytest.mark.parametrize(
    ("began", "asked", "goes_on"),
    [
        # the default of that time, where the study says nothing now
        ({"weight_rounding": "nearest"}, {}, {"weight_rounding": "nearest"}),
        # what the study says stays what it says, and is compared later on
        ({"weight_rounding": "nearest"}, {"weight_rounding": "gptq"}, {"weight_rounding": "gptq"}),
        ({"weight_rounding": "gptq"}, {}, {"weight_rounding": "auto"}),
        # a setting of which that time knew nothing
        ({}, {}, {"equalization": False}),
        ({"equalization": True}, {}, {"equalization": True}),
        ({"sequential_images": 1024}, {}, {"sequential_images": 1024}),
        ({"calibration_images": "auto"}, {}, {"calibration_images": "auto"}),
        # a setting that the user took back is a change, not an old default
        ({"finish": "refine", "seed": 3}, {}, {"finish": "sequential", "seed": 0}),
    ],
)
def test_only_former_defaults_are_carried_on(
    began: dict[str, Any], asked: dict[str, Any], goes_on: dict[str, Any], tmp_path: Path
) -> None:
    folder = RunFolder.create(tmp_path / "run")
    written = read_study({**_LEAST, "settings": began}).model_dump(mode="json")
    if "equalization" not in began:
        del written["settings"]["equalization"]
    folder.write_study(written)
    folder.trials.write_text("{}\n")
    found = as_begun(read_study({**_LEAST, "settings": asked}), folder).settings
    assert {key: getattr(found, key) for key in goes_on} == goes_on


def test_a_folder_without_a_run_changes_nothing(tmp_path: Path) -> None:
    study = read_study(_LEAST)
    assert as_begun(study, RunFolder(tmp_path / "none")) == study

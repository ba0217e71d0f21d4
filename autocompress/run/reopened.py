"""A run's study put together again, with the model and the data that it was made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.machine.progress import Progress
from autocompress.results.metric import Measurement
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.resuming import another_model, differences
from autocompress.run.study import GIVEN, StudyConfig, read_study
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView


def study_of(folder: RunFolder) -> StudyConfig:
    """The study of a run, whose model and data are there by name.

    Raises:
        InputError: they were handed over in Python.
    """
    study = read_study(folder.read_study(), where=str(folder.study))
    check_named(folder, study)
    return study


def check_named(folder: RunFolder, study: StudyConfig) -> None:
    """See that the model and the data of a run's study are there by name.

    Raises:
        InputError: they were handed over in Python.
    """
    if GIVEN in (study.model.factory, study.data.factory):
        raise InputError(
            f"The run in {folder.root} was made on a model or data handed over in Python, which "
            "are not here. Name their factories in a study."
        )


def reopened(folder: RunFolder, view: RunView, place: Path, progress: Progress) -> Assembly:
    """The parts of a run's study; its uncompressed model counts as measured.

    Args:
        folder, view: of the run.
        place: folder for files of evaluations.
        progress: told what is going on.

    Raises:
        InputError: model, data, target or settings are others by now.
    """
    parts = assemble(study_of(folder), place, progress=progress)
    resume(folder, view.baseline, parts, folder.read_study())
    return parts


def reopened_there(
    folder: RunFolder, before: Measurement, study: StudyConfig, place: Path, progress: Progress
) -> Assembly:
    """The parts of a run's study with another target, to time the run's policies there.

    Args:
        folder: of the run.
        before: its uncompressed model, on any target.
        study: with the other target, which was reached.
        place, progress: as of ``reopened``.

    Raises:
        InputError: the model is another by now; its weights have no say in times.
    """
    check_named(folder, study)
    parts = assemble(study, place, progress=progress, reached=False)
    if other := another_model(before, parts):
        _refuse(folder, [other])
    return parts


def resume(
    folder: RunFolder, baseline: Measurement, parts: Assembly, written: dict[str, Any]
) -> None:
    """Let the uncompressed model of a run count as measured.

    Args:
        folder: of the run.
        baseline: its uncompressed model, on the target of the parts.
        parts: of its study.
        written: that study, as plain data.

    Raises:
        InputError: model, data, target or settings are others by now.
    """
    if changed := differences(baseline, written, parts):
        _refuse(folder, changed)
    parts.evaluator.measurer.set_baseline(baseline)


def _refuse(folder: RunFolder, changed: list[str]) -> None:
    raise InputError(
        f"The run in {folder.root} was made on {'; '.join(changed)}: its policies cannot be "
        "built again as they were measured. Put back what it was made on, or search anew."
    )

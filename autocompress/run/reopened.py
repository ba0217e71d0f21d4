"""A run's study put together again, with the model and the data that it was made on."""

from __future__ import annotations

from pathlib import Path

from autocompress.errors import InputError
from autocompress.machine.progress import Progress
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.resuming import differences
from autocompress.run.study import GIVEN, StudyConfig, read_study
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView


def study_of(folder: RunFolder) -> StudyConfig:
    """The study of a run, whose model and data are there by name.

    Raises:
        InputError: they were handed over in Python.
    """
    study = read_study(folder.read_study(), where=str(folder.study))
    if GIVEN in (study.model.factory, study.data.factory):
        raise InputError(
            f"The run in {folder.root} was made on a model or data handed over in Python, which "
            "are not here. Name their factories in a study."
        )
    return study


def reopened(
    folder: RunFolder,
    view: RunView,
    place: Path,
    progress: Progress,
    study: StudyConfig | None = None,
) -> Assembly:
    """The parts of a run's study; its uncompressed model counts as measured.

    Args:
        folder, view: of the run.
        place: folder for files of evaluations.
        progress: told what is going on.
        study: the run's with another target, on which the view's costs were measured.

    Raises:
        InputError: model, data, target or settings are others by now.
    """
    own = study_of(folder)
    parts = assemble(study or own, place, progress=progress)
    written = folder.read_study()
    if study is not None:
        there = study.model_dump(mode="json")
        written = {**written, "target": there["target"], "also_on": there["also_on"]}
    changed = differences(view.baseline, written, parts)
    if changed:
        raise InputError(
            f"The run in {folder.root} was made on {'; '.join(changed)}: its policies cannot be "
            "built again as they were measured. Put back what it was made on, or search anew."
        )
    parts.evaluator.measurer.set_baseline(view.baseline)
    return parts

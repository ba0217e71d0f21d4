"""The task of a study: the one that it names, the data's own, or the one that targets tell."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from autocompress.errors import InputError
from autocompress.results.metric import ACCURACY, Metric
from autocompress.run.factories import import_factory
from autocompress.run.study import StudyConfig, TaskSection
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.ready import ready
from autocompress.task.settle import renamed, settle, watched
from autocompress.task.task import Task

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly


def make_task(given: str | Mapping[str, Any] | Task) -> Task:
    """A task as it is, a ready-made one by its name, or one that a factory makes.

    Args:
        given: a task, a name, or ``factory`` (a name or ``package.module:function``) and ``args``.

    Raises:
        InputError: no such task or factory, or it makes something else.
    """
    if isinstance(given, Task):
        return given
    section: Mapping[str, Any] = {"factory": given} if isinstance(given, str) else given
    factory, args = str(section.get("factory")), dict(section.get("args") or {})
    made = ready(factory, **args) if ":" not in factory else import_factory(factory, args)(**args)
    if not isinstance(made, Task):
        raise InputError(f"{factory} must return an autocompress.Task, got {type(made).__name__}.")
    return made


def settled_data(
    study: StudyConfig, given: str | TaskSection | None, model: nn.Module, data: Data
) -> Data:
    """The data with their task, which is said.

    Args:
        study: as read.
        given: ``data.task`` of the study, with its variables resolved, or ``None``.
        model, data: as loaded.

    Raises:
        InputError: the task is not certain, or does not fit the targets or the study.
    """
    named = given.model_dump() if isinstance(given, TaskSection) else given
    asked = data.task if named is None else named
    if asked is not None:
        data = replace(data, task=make_task(asked))
    predict = partial(call, model)
    task, notes = settle(data, predict)
    quality = task.quality
    said = f"task: {task}, judged by {quality.title} ({quality.goal} it)"
    for text in (said, *notes):
        logging.getLogger("autocompress.task").info(text)
    if study.max_accuracy_drop is not None and quality.name != ACCURACY.name:
        raise InputError(
            f"`max_accuracy_drop` is in points of accuracy, but this task ({task}) is judged by "
            f"{quality.title}. Use `max_quality_drop`: a number in the metric's unit, or a share "
            "such as '2%'."
        )
    return watched(replace(data, task=task), predict)


def asked_of(study: StudyConfig, task: Task | None) -> dict[str, Any]:
    """How close is close enough, as the task has it where the study does not say."""
    drops = (study.max_accuracy_drop, study.max_quality_drop)
    if task is None or task.close is None or any(d is not None for d in drops):
        return {}
    return {"max_quality_drop": task.close}


def judged_alike(quality: Metric, parts: Assembly) -> bool:
    """Go on judging by what was judged by before, where that is the same.

    Earlier versions called the metric of the data accuracy, whatever it was; then it is again.

    Args:
        quality: of measurements that are there.
        parts: of the study that goes on.
    """
    task = parts.task
    if quality == ACCURACY != task.quality and parts.data.metric is not None:
        if task.quality.goal != quality.goal:
            return False
        parts.data.task = renamed(task, quality)
    return quality == parts.task.quality

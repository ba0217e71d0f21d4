"""Which parts of a model are told that they train."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

from autocompress.model.training_run import in_training, to_training
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.settle import implied
from autocompress.task.task import Task

_log = logging.getLogger(__name__)


def task_of(module: nn.Module, data: Data) -> Task:
    """The task of some data, or the one that they imply of what a module answers in use."""
    if data.task is not None:
        return data.task
    with torch.no_grad():
        return implied(data, call(copy.deepcopy(module).eval(), data.train.inputs(2)))


def answering_as_used(module: nn.Module, data: Data, task: Task, compared: bool) -> tuple[str, ...]:
    """Modules that are told that they are in use while their layers train; empty for almost all.

    Some models answer otherwise while they train (with what auxiliary heads say, for example).
    Where the task's loss does not take that, they are trained on what they answer in use.

    Args:
        module: about to be trained; not changed.
        data: its train split is read.
        task: whose loss it is trained on.
        compared: whether answers are compared with a teacher's, who answers as in use.
    """
    inputs, targets = next(iter(data.train.batches(2)))
    training = in_training(copy.deepcopy(module).eval(), inputs)
    if training is None or not training.rebuilt:
        return ()
    told = to_training(copy.deepcopy(module))
    names = tuple(name for name, part in told.named_modules() if part.training)
    why = "is compared with a teacher's answer in use"
    if not compared:
        try:
            with torch.no_grad():
                task.criterion(call(told, inputs), targets)
            return ()
        except Exception as error:  # losses of anyone's; which of them is said
            why = f"the task's loss does not take ({type(error).__name__}: {error})"
    _log.info(
        "While it trains, the model answers with other parts, which %s: it is trained on what it "
        "answers in use. Layers that run in training only stay as they are: %s.",
        why,
        ", ".join(training.layers[:5]) or "none",
    )
    return names


def set_training(module: nn.Module, as_used: tuple[str, ...]) -> None:
    """Tell a module that it trains, some of its parts excepted."""
    module.train()
    for name in as_used:
        module.get_submodule(name).training = False

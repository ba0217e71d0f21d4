"""Which parts of a model are told that they train."""

from __future__ import annotations

import copy
import functools
import logging

import torch
from torch import nn

from autocompress.model.training_run import in_training, seeded, to_training
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.settle import implied
from autocompress.task.task import Task
from autocompress.techniques.quantize import QuantizedLayer

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
    Where the task's loss does not take that, or where such heads no longer fit a model that was
    cut, they are trained on what they answer in use.

    Args:
        module: about to be trained; not changed.
        data: its train split is read.
        task: whose loss it is trained on.
        compared: whether answers are compared with a teacher's, who answers as in use.
    """
    inputs, targets = next(iter(data.train.batches(2)))
    told = to_training(copy.deepcopy(module))
    names = tuple(
        name
        for name, part in told.named_modules()
        if part.training and not isinstance(part, QuantizedLayer)  # its range follows the data
    )
    why = "cannot be compared with a teacher's answer in use" if compared else ""
    try:
        with torch.no_grad(), seeded():
            answer = call(copy.deepcopy(told), inputs)
    # layers for training only may read channels that are gone, or the model may want targets
    except Exception as error:
        _log.debug("The model failed in training", exc_info=error)
        _say(f"While it trains, the model does not run on inputs ({type(error).__name__})")
        return names
    training = in_training(copy.deepcopy(module).eval(), inputs)
    if training is None or not training.rebuilt:
        return ()
    if not why:
        try:
            task.criterion(answer, targets)
            return ()
        except Exception as error:  # losses of anyone's; which of them is said
            _log.debug("The loss of what the model answers in training failed", exc_info=error)
            why = f"the task's loss does not take ({type(error).__name__})"
    _say(
        f"While it trains, the model answers with other parts, which {why}",
        ", ".join(training.heads[:5]) or "none",
    )
    return names


@functools.cache
def _say(why: str, heads: str = "") -> None:
    """Log how a model is trained, once: a study trains by the hundred."""
    stay = f" Layers that run in training only stay as they are: {heads}." if heads else ""
    _log.info("%s: it is trained on what it answers in use.%s", why, stay)


def set_training(module: nn.Module, as_used: tuple[str, ...]) -> None:
    """Tell a module that it trains, some of its parts excepted."""
    module.train()
    for name in as_used:
        module.get_submodule(name).training = False

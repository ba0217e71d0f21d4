"""A quick score of a module while training; what is reported is measured by ``measure``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.recover.device import Place, in_float
from autocompress.task.calling import call
from autocompress.task.data import Split
from autocompress.task.metrics import TaskMetric
from autocompress.task.nested import map_tensors
from autocompress.task.outputs import hits
from autocompress.task.task import Task


def score(
    module: nn.Module,
    split: Split,
    task: Task | Callable[[Any, Any], Any] | None = None,
    *,
    place: Place | None = None,
    view: Callable[[Any], Any] | None = None,
    batch: int = 500,
) -> float:
    """The quality over a whole split.

    Args:
        module: its mode is put back afterwards.
        split: inputs and targets.
        task: says what the quality is; or a metric, from all outputs and targets to a number;
            ``None`` is top-1 accuracy.
        place: device and precision; ``None`` is where the module is, in float32.
        view: in place of the split's ``preprocess``.
        batch: samples per call.
    """
    if place is None:
        parameter = next(module.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        place = Place(device, bf16=False)
    training = module.training
    module.eval()
    metric = task.measured[0] if isinstance(task, Task) else _metric(task)
    meter = metric.meter()
    try:
        with torch.inference_mode(), place.autocast():
            for start in range(0, len(split), batch):
                stored, wanted = split.take(slice(start, start + batch))
                prepared = split.prepare(stored) if view is None else view(stored)
                outputs = in_float(call(module, place.put(prepared)))
                meter.update(map_tensors(Tensor.cpu, outputs), map_tensors(Tensor.cpu, wanted))
    finally:
        module.train(training)
    return meter.result().value


def _metric(function: Callable[[Any, Any], Any] | None) -> TaskMetric:
    return TaskMetric("metric", "", "maximize", function or hits, resamples=0)

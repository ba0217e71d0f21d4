"""A quick score of a module while training; what is reported is measured by ``measure``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.recover.device import Place
from autocompress.task.calling import call
from autocompress.task.data import Split
from autocompress.task.outputs import hits


def score(
    module: nn.Module,
    split: Split,
    metric: Callable[[Tensor, Tensor], float] | None = None,
    *,
    place: Place | None = None,
    view: Callable[[Any], Any] | None = None,
    batch: int = 500,
) -> float:
    """Top-1 accuracy as a fraction, or a metric, over a whole split.

    Args:
        module: its mode is put back afterwards.
        split: inputs and targets.
        metric: from all outputs and targets to a number; ``None`` is top-1.
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
    outputs, targets = [], []
    try:
        with torch.inference_mode(), place.autocast():
            for start in range(0, len(split), batch):
                stored, wanted = split.take(slice(start, start + batch))
                prepared = split.prepare(stored) if view is None else view(stored)
                outputs.append(call(module, place.put(prepared)).float().cpu())
                targets.append(wanted.cpu())
    finally:
        module.train(training)
    found, truth = torch.cat(outputs), torch.cat(targets)
    if metric is not None:
        return float(metric(found, truth))
    return float(hits(found, truth).double().mean())

"""Whether a model answers each sample by itself, as whoever runs its file takes for granted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autocompress.task.compared import TOLERANCES, difference
from autocompress.task.nested import batch_size, take, tensors

SAMPLES = 8
"""Of a batch that is tried."""


@torch.inference_mode()
def told_by_others(predict: Callable[[Any], Any], inputs: Any) -> tuple[str, ...]:
    """What is said of a model whose answer to a sample depends on the rest of its batch.

    A sample is asked for among others and among copies of itself, in batches of one size.

    Args:
        predict: from a batch of inputs to the outputs, in eval mode.
        inputs: of several samples.

    Returns:
        A sentence or two with the remedy; nothing where the answers are the same.
    """
    count = batch_size(inputs)
    if count < 2:
        return ()
    among = _parts(predict(inputs), count)
    for place in (0, count - 1):  # what runs along the samples changes nothing of the first
        copies = take(inputs, torch.full((count,), place))
        off = _differ(_parts(predict(copies), count), among, place)
        if off:
            break
    else:
        return ()
    if _differ(_parts(predict(inputs), count), among, place):
        return ()  # what differs from run to run anyway tells nothing
    return (
        "The model's answer to a sample depends on the other samples of its batch: with others "
        f"around it, it is {off}. Its quality then follows from the size of the batches and the "
        "order of the samples, and whoever runs the file on one sample gets other answers than "
        "were measured. Let it compute each sample by itself: batch norms with "
        "`track_running_stats=True`, softmax and means over other axes than the first, attention "
        "with `batch_first=True`.",
    )


def _parts(outputs: Any, count: int) -> list[Tensor]:
    """The numbers of an answer that belong to samples."""
    found = [t for t in tensors(outputs) if t.dim() and len(t) == count and t.is_floating_point()]
    return [tensor.clone() for tensor in found]


def _differ(found: list[Tensor], wanted: list[Tensor], place: int) -> str:
    """In what the answers to one sample differ; lengths that follow from the batch are padding."""
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return ""
    ours, theirs = ([t[place : place + 1] for t in parts] for parts in (found, wanted))
    return difference(ours, theirs, TOLERANCES[torch.float32], least=1e-3)

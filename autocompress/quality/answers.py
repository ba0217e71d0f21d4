"""What a model, or an exported file of it, answers on a split: one batch after another.

Outputs come built as the model builds them, from a module and from a file alike, so that a metric
sees the same. Nothing is kept here: who needs all outputs at once joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocompress.machine.facts import cores_to_use
from autocompress.machine.lock import after_timing
from autocompress.targets.base import Session, Target
from autocompress.task.calling import rebuild
from autocompress.task.nested import batch_size, map_tensors, tensors
from autocompress.task.split import Split

BATCH = 250
"""Samples of one call. Ranges that a file takes at run time are those of a batch: with another one
the quality of such files is another."""
_BYTES = 64_000_000
"""Of a batch's inputs; about a hundred images of 224 pixels."""


def module_answers(
    predict: Callable[[Any], Any], split: Split, *, batch: int = 500, limit: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """Outputs and targets of a model, batch by batch.

    Args:
        predict: from a batch of prepared inputs to outputs, e.g. ``partial(call, module)``.
        split: inputs and targets, in memory or streamed.
        batch: samples per call.
        limit: only the first so many samples.
    """
    for inputs, targets in split.batches(_fitting(split, batch), limit=limit):
        after_timing()
        with torch.inference_mode():
            found = predict(inputs)
        # a copy outside of inference mode, which users' metrics may write to
        yield map_tensors(torch.clone, _as_outputs(found)), targets


def file_answers(
    target: Target,
    path: str | Path,
    split: Split,
    *,
    like: Any = None,
    batch: int = BATCH,
    limit: int | None = None,
    threads: int | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Outputs and targets of an exported file in its runtime, batch by batch, on all cores.

    A file whose batch is fixed is fed in batches of that size; the last one is padded.

    Args:
        target: where it runs.
        path: the file.
        split, limit: as in ``module_answers``.
        like: what the model itself answers to any inputs: outputs are built like it. ``None``
            gives the one output, or a tuple of several.
        batch: samples per call, where the file leaves the batch free.
        threads: ``None`` takes all cores that this process may use.
    """
    with closing(target.open(path, threads=threads or cores_to_use(), fixed=False)) as session:
        size = _batch_of(session, _fitting(split, batch, like))
        for inputs, targets in split.batches(size, limit=limit):
            after_timing()
            yield rebuild(like, _run_padded(session, inputs, size)), targets


def _fitting(split: Split, batch: int, like: Any = None) -> int:
    """Samples of a batch whose inputs and outputs, and so whose activations, are not too large.

    Args:
        split: inputs.
        batch: at most.
        like: an answer to some samples, where one is known.
    """
    each = sum(part.nbytes for part in tensors(split.inputs(1)))
    each += sum(part[:1].nbytes for part in tensors(like) if part.dim())
    return max(1, min(batch, _BYTES // max(1, each)))


def _as_outputs(found: Any) -> Any:
    return found if tensors(found) else torch.as_tensor(found)


def _batch_of(session: Session, wanted: int) -> int:
    """The file's own batch size where it is fixed."""
    fixed = {spec.shape[0] for spec in session.inputs if spec.shape} - {None}
    return min((d for d in fixed if d is not None), default=wanted)


def _run_padded(session: Session, inputs: Any, size: int) -> list[Any]:
    """The file's outputs on a batch that may be smaller than it takes."""
    parts = [part.numpy(force=True) for part in tensors(inputs)]
    count = batch_size(inputs)
    free = all(spec.shape[0] is None for spec in session.inputs if spec.shape)
    padded = count < size and not free
    if padded:
        parts = [np.concatenate([p, np.repeat(p[-1:], size - count, axis=0)]) for p in parts]
    found = [np.array(part) for part in session.run(parts)]
    # what does not belong to samples (the priors of a detector) has another length, and stays
    return [part[:count] if padded and part.shape[:1] == (size,) else part for part in found]

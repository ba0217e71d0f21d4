"""What a task says of a model on a split; top-1 accuracy, and comparison on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import InputError, MeasurementError
from autocompress.measure.lock import machine_lock
from autocompress.measure.machine import usable_cores
from autocompress.targets.base import Session, Target
from autocompress.task.data import Split
from autocompress.task.metrics import Meter, TaskMetric
from autocompress.task.outputs import hits
from autocompress.task.task import Result, Task

MetricFunction = Callable[[Tensor, Tensor], float]
"""From outputs and targets of many samples to a number where more is better."""


@dataclass(frozen=True)
class Accuracy:
    """A metric on a split.

    Args:
        value: top-1 accuracy as a fraction of 1, or the user's metric.
        stderr: its standard error: binomial for top-1, bootstrap over samples otherwise.
        images: number of samples.
        correct: ``(N,)`` whether each sample was right; ``None`` for a user's metric.
    """

    value: float
    stderr: float
    images: int
    correct: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same samples.

    Args:
        difference: accuracy of the first minus accuracy of the second.
        low, high: 95 % interval by paired bootstrap.
        p_value: of McNemar's exact test that both are equally good.
        only_first, only_second: samples that only one of them gets right.
    """

    difference: float
    low: float
    high: float
    p_value: float
    only_first: int
    only_second: int


def accuracy(
    predict: Callable[[Any], Any],
    split: Split,
    metric: MetricFunction | None = None,
    *,
    batch: int = 500,
    limit: int | None = None,
) -> Accuracy:
    """Score a model on a split.

    Args:
        predict: from a batch of prepared inputs to outputs, e.g. an ``nn.Module``.
        split: inputs and targets.
        metric: ``None`` is top-1 accuracy of outputs ``(N, classes)`` (or ``(N, ..., classes)``
            with targets ``(N, ...)``: per position), or of one logit ``(N, 1)`` for targets 0, 1.
        batch: samples per call.
        limit: only the first so many samples.

    Raises:
        InputError: the metric returns something other than a finite number, or is missing where
            the outputs are numbers rather than classes.
    """
    meter = _meter(metric)
    count = 0
    with machine_lock(exclusive=False), torch.inference_mode():
        for inputs, target in split.batches(batch, limit=limit):
            meter.update(torch.as_tensor(predict(inputs)), target)
            count += len(target)
    return _accuracy(meter, count)


def file_accuracy(
    target: Target,
    path: str | Path,
    split: Split,
    metric: MetricFunction | None = None,
    *,
    batch: int = 250,
    limit: int | None = None,
    threads: int | None = None,
) -> Accuracy:
    """Score an exported file in its runtime, in big batches on all cores.

    A file whose batch is fixed is fed in batches of that size; the last one is padded.

    Args:
        target: where it runs.
        path: the file.
        split, metric, limit: as in ``accuracy``.
        batch: samples per call, where the file leaves the batch free.
        threads: ``None`` takes all cores of this process.
    """
    meter, count = _meter(metric), 0
    for outputs, targets in _answers(target, path, split, batch, limit, threads):
        meter.update(outputs, targets)
        count += len(targets)
    return _accuracy(meter, count)


def file_quality(
    target: Target,
    path: str | Path,
    split: Split,
    task: Task,
    *,
    batch: int = 250,
    threads: int | None = None,
) -> Result:
    """All figures of a task for an exported file, in its runtime.

    A metric that fails is left out, with the reason; the others stand.

    Args:
        target: where it runs.
        path: the file.
        split: inputs and targets.
        task: says what is measured.
        batch, threads: as in ``file_accuracy``.

    Raises:
        MeasurementError: the split is empty.
    """
    judge = task.judge()
    for outputs, targets in _answers(target, path, split, batch, None, threads):
        judge.update(outputs, targets)
    if not judge.count:
        raise MeasurementError("A quality needs at least one sample, the split is empty.")
    return judge.result()


def _answers(
    target: Target,
    path: str | Path,
    split: Split,
    batch: int,
    limit: int | None,
    threads: int | None,
) -> Iterator[tuple[Any, Any]]:
    """Outputs of an exported file, and the targets, batch by batch."""
    with (
        machine_lock(exclusive=False),
        closing(target.open(path, threads=threads or usable_cores(), fixed=False)) as session,
    ):
        size = _batch_of(session, batch)
        for inputs, targets in split.batches(size, limit=limit):
            yield _run_padded(session, inputs, size), targets


def score(outputs: Tensor, targets: Tensor, metric: MetricFunction | None = None) -> Accuracy:
    """From all outputs and targets to a value and its standard error."""
    meter = _meter(metric)
    meter.update(outputs, targets)
    return _accuracy(meter, len(targets))


def _meter(metric: MetricFunction | None) -> Meter:
    """Top-1 accuracy, or the user's function."""
    return TaskMetric("metric", "", "maximize", metric or hits).meter()


def _accuracy(meter: Meter, count: int) -> Accuracy:
    if count == 0:
        raise MeasurementError("Accuracy needs at least one sample, the split is empty.")
    found = meter.result()
    right = found.each if found.each is not None and found.each.dtype == bool else None
    return Accuracy(found.value, found.stderr or 0.0, count, right)


def paired(first: Accuracy, second: Accuracy, *, resamples: int = 2000, seed: int = 0) -> Paired:
    """Compare two models on the same samples.

    Args:
        first, second: top-1 accuracies of the same split in the same order.
        resamples: bootstrap replications.
        seed: of the resampling.

    Raises:
        InputError: per-sample results are missing, or of different splits.

    References:
        McNemar, Note on the sampling error of the difference between correlated proportions,
        Psychometrika 12 (1947); exact binomial form.
    """
    from scipy.stats import binomtest

    if first.correct is None or second.correct is None:
        raise InputError("A paired comparison needs top-1 accuracy; a user's metric has no pairs.")
    if len(first.correct) != len(second.correct):
        raise InputError(
            f"A paired comparison needs the same samples, got {len(first.correct)} and "
            f"{len(second.correct)}."
        )
    gain = int((first.correct & ~second.correct).sum())
    loss = int((second.correct & ~first.correct).sum())
    count = len(first.correct)
    p_value = float(binomtest(gain, gain + loss).pvalue) if gain + loss else 1.0
    # only the counts of the three outcomes matter, so the resampled ones are multinomial
    draws = np.random.default_rng(seed).multinomial(
        count, [gain / count, loss / count, 1 - (gain + loss) / count], resamples
    )
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / count, [2.5, 97.5])
    return Paired((gain - loss) / count, float(low), float(high), p_value, gain, loss)


def _batch_of(session: Session, wanted: int) -> int:
    """The file's own batch size where it is fixed."""
    fixed = {spec.shape[0] for spec in session.inputs if spec.shape} - {None}
    return min((d for d in fixed if d is not None), default=wanted)


def _run_padded(session: Session, inputs: Any, size: int) -> Tensor:
    parts = list(_as_arrays(inputs))
    count = len(parts[0])
    free = all(spec.shape[0] is None for spec in session.inputs if spec.shape)
    if count < size and not free:
        parts = [np.concatenate([p, np.repeat(p[-1:], size - count, axis=0)]) for p in parts]
    return torch.from_numpy(np.asarray(session.run(parts)[0])[:count].copy())


def _as_arrays(inputs: Any) -> Iterator[NDArray[Any]]:
    for part in inputs if isinstance(inputs, tuple | list) else (inputs,):
        yield part.numpy(force=True) if isinstance(part, Tensor) else np.asarray(part)

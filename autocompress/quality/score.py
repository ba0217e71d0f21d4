"""What a task says of a model on a split; top-1 accuracy, and comparison on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import InputError, MeasurementError
from autocompress.quality.answers import BATCH, file_answers
from autocompress.targets.base import Target
from autocompress.task.data import Split
from autocompress.task.metrics import Meter, TaskMetric
from autocompress.task.nested import batch_size
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
    """

    difference: float
    low: float
    high: float
    p_value: float


def file_quality(
    target: Target,
    path: str | Path,
    split: Split,
    task: Task,
    *,
    like: Any = None,
    batch: int = BATCH,
    threads: int | None = None,
) -> Result:
    """All figures of a task for an exported file, in its runtime.

    A metric that fails is left out, with the reason; the others stand.

    Args:
        target: where it runs.
        path: the file.
        split: inputs and targets.
        task: says what is measured.
        like, batch, threads: as in ``file_answers``.

    Raises:
        MeasurementError: the split is empty.
    """
    judge = task.judge()
    for outputs, targets in file_answers(
        target, path, split, like=like, batch=batch, threads=threads
    ):
        judge.update(outputs, targets)
    if not judge.count:
        raise MeasurementError("A quality needs at least one sample, the split is empty.")
    return judge.result()


def score(answers: Iterable[tuple[Any, Any]], metric: MetricFunction | None = None) -> Accuracy:
    """Score outputs and targets that come batch by batch; see ``quality.answers``.

    Args:
        answers: of a model or of a file.
        metric: ``None`` is top-1 accuracy of outputs ``(N, classes)`` (or ``(N, ..., classes)``
            with targets ``(N, ...)``: per position), or of one logit ``(N, 1)`` for targets 0, 1.

    Raises:
        InputError: the metric returns something other than a finite number, or is missing where
            the outputs are numbers rather than classes.
        MeasurementError: there is not a single answer.
    """
    meter: Meter = TaskMetric("metric", "", "maximize", metric or hits).meter()
    count = 0
    for outputs, targets in answers:
        meter.update(outputs, targets)
        count += batch_size(targets)
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
    return Paired((gain - loss) / count, float(low), float(high), p_value)

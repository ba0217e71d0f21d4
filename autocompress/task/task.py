"""What a model is for: how it is judged, trained, and compared with its compressed versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Literal

import torch
from torch import Tensor

from autocompress.errors import AutocompressError, InputError, explained
from autocompress.results.metric import FRACTION, Allowance, Metric
from autocompress.task.divergence import Divergence, GaussianKL, as_divergence
from autocompress.task.metrics import Directed, Meter, Score, TaskMetric, as_metric, averaged
from autocompress.task.nested import batch_size, map_tensors, tensors

Loss = Callable[..., Tensor]
"""From outputs and targets of a batch to a scalar."""
Check = Callable[[Any, Any], Sequence[str]]
"""Holds targets against outputs: gives remarks on how they are read, refuses what does not fit."""

_CORRECT = "Task.correct"
"""What a failure of it is told under."""


@dataclass(frozen=True)
class Result:
    """All figures of a task on a split.

    Args:
        scores: per metric that could be told, the quality first.
        problems: why others could not.
        count: samples.
        correct: ``(N,)`` the task's own per-sample correctness, where it has one.
    """

    scores: dict[str, Score]
    problems: tuple[str, ...]
    count: int
    correct: Score | None = None


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Where a model says how likely each class of a sample is; cascades tell by it how sure it is.

    Args:
        kind: ``softmax``: logits ``(N, classes)``; ``sigmoid``: one logit of yes, ``(N, 1)``.
        output: path of the logits, where the model gives several tensors.
    """

    kind: Literal["softmax", "sigmoid"] = "softmax"
    output: str | None = None


@dataclass(frozen=True)
class Task:
    """What a model is for.

    Args:
        metrics: one or several; the first is the quality that searches trade for cost. Metrics of
            torchmetrics may stand among them: their class names them.
        loss: from outputs and targets of a batch to a scalar, for training and Taylor importance.
            ``None``: policies are not trained on labels.
        divergence: between the original's and the compressed model's outputs; a ``Divergence`` or
            a function. ``None``: the normal distribution's, over all outputs.
        correct: from outputs and targets of a batch to whether each sample is right, ``(N,)``;
            without metrics its share is the quality.
        close: how much worse than the original is good enough: ``0.3`` in the metric's unit or
            ``"2%"`` of the original's value. The cheapest policy that keeps to it is then the
            answer; ``max_quality_drop`` says something else for one study.
        name: for people.
        detail: what was found out about it, such as ``into 10 classes``.
        check: called on a few outputs and many targets before anything runs.
        smooths: the loss takes ``smoothing``, of labels.
        class_scores: of a classification of whole samples; ``None``: no cascade is built, as
            nothing says how sure the model is.
    """

    metrics: TaskMetric | Directed | Sequence[TaskMetric | Directed] = ()
    loss: Loss | None = None
    divergence: Divergence | Callable[..., Any] | None = None
    correct: Callable[[Any, Any], Any] | None = None
    close: str | float | None = None
    name: str = "own task"
    detail: str = ""
    check: Check | None = None
    smooths: bool = False
    class_scores: ClassScores | None = None
    _made: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        listed = self.metrics if isinstance(self.metrics, Sequence) else (self.metrics,)
        given = tuple(as_metric(metric) for metric in listed)
        if not given and self.correct is not None:
            given = (TaskMetric("accuracy", FRACTION, "maximize", self.correct, per_sample=True),)
        if not given:
            raise InputError(
                "A task needs at least one metric: `Task(TaskMetric(name, unit, goal, compute))`, "
                "or `correct`."
            )
        names = [m.name for m in given]
        if len(set(names)) != len(names):
            raise InputError(f"The metrics of a task need names of their own, got {names}.")
        object.__setattr__(self, "metrics", given)
        if self.divergence is not None:
            object.__setattr__(self, "divergence", as_divergence(self.divergence))
        if self.close is not None:
            Allowance.parse(self.close)

    def __reduce__(self) -> Any:
        # the functions of a ready-made task cannot be pickled, but it can be made again
        if self._made is not None:
            maker, args, named = self._made
            return (partial(maker, *args, **named), ())
        return super().__reduce__()

    @property
    def measured(self) -> tuple[TaskMetric, ...]:
        """The metrics, the quality first."""
        assert isinstance(self.metrics, tuple)
        return self.metrics

    @property
    def figures(self) -> tuple[Metric, ...]:
        """Names, units and directions of the metrics."""
        return tuple(m.metric for m in self.measured)

    @property
    def quality(self) -> Metric:
        """What the model is judged by."""
        return self.measured[0].metric

    @property
    def compared(self) -> Divergence:
        """The divergence; its scales are not told yet."""
        return as_divergence(self.divergence) if self.divergence is not None else GaussianKL()

    def __str__(self) -> str:
        return f"{self.name} {self.detail}".strip()

    def criterion(self, outputs: Any, targets: Any, smoothing: float = 0.0) -> Tensor:
        """The loss of a batch.

        Raises:
            InputError: the task has none.
        """
        if self.loss is None:
            raise InputError(
                f"The task ({self}) has no loss to train towards. Give it one (`Task(loss=...)`), "
                "or train nothing: `recovery: {epochs: 0}`."
            )
        if self.smooths:
            return self.loss(outputs, targets, smoothing=smoothing)
        return self.loss(outputs, targets)

    def judge(self) -> Judge:
        """Takes outputs and targets batch by batch."""
        return Judge(self)

    def checked(self, outputs: Any, targets: Any) -> tuple[str, ...]:
        """Hold targets against outputs.

        Args:
            outputs: of a few samples.
            targets: of many.

        Returns:
            Remarks on how targets are read.

        Raises:
            InputError: they do not fit; the message has the remedy.
        """
        if self.check is None:
            return ()
        return tuple(note for note in self.check(outputs, targets) if note)


def ready_made(maker: Callable[..., Task]) -> Callable[..., Task]:
    """Let what a function makes know how it was made, so that other processes can make it too."""

    @wraps(maker)
    def made(*args: Any, **named: Any) -> Task:
        task = maker(*args, **named)
        object.__setattr__(task, "_made", (made, args, named))
        return task

    return made


class Judge:
    """The metrics of a task under way; a metric that fails fails alone.

    Args:
        task: whose metrics.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._meters: dict[str, Meter] = {m.name: m.meter() for m in task.measured}
        self._problems: dict[str, AutocompressError] = {}
        self._correct: list[Tensor] = []
        self.count = self._undefined = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch."""
        outputs, targets = map_tensors(_plain, outputs), map_tensors(_plain, targets)
        self.count += batch_size(targets)
        self._undefined += _not_numbers(outputs, batch_size(targets))
        for name, meter in self._meters.items():
            if name not in self._problems:
                self._try(name, partial(meter.update, outputs, targets))
        if self.task.correct is not None and _CORRECT not in self._problems:
            self._try(_CORRECT, partial(self._take_correct, outputs, targets))

    def result(self) -> Result:
        """What came of all batches."""
        scores: dict[str, Score] = {}
        for name, meter in self._meters.items():
            if name not in self._problems:
                found = self._try(name, meter.result)
                if found is not None:
                    scores[name] = found
        correct = self._try(_CORRECT, self._told_correct) if self._correct else None
        problems = tuple(str(error) for error in self._problems.values())
        if self._undefined:
            problems += (
                f"For {self._undefined} of {self.count} samples the answer is not a number (NaN), "
                "and what a metric makes of that says nothing. Look for NaN in their inputs.",
            )
        return Result(scores, problems, self.count, correct)

    def quality(self) -> Score:
        """The quality.

        Raises:
            AutocompressError: it could not be told.
        """
        name = self.task.quality.name
        found = self.result().scores.get(name)
        if found is None:
            raise self._problems[name]
        return found

    def _take_correct(self, outputs: Any, targets: Any) -> None:
        assert self.task.correct is not None
        self._correct.append(torch.as_tensor(self.task.correct(outputs, targets)).cpu())

    def _told_correct(self) -> Score | None:
        """Whether each sample is right; ``None`` where that failed on some."""
        if _CORRECT in self._problems:
            return None
        each = torch.cat(self._correct)
        if len(each) != self.count:
            raise InputError(
                f"`correct` must tell of each of {self.count} samples whether it is right, got "
                f"{len(each)} answers."
            )
        return averaged(_CORRECT, each)

    def _try(self, name: str, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except AutocompressError as error:
            self._problems[name] = error
        except Exception as error:  # a metric of the user's may raise anything
            told = InputError(f"The metric {name!r} failed: {explained(error)}")
            told.__cause__ = error
            self._problems[name] = told
        return None


def _not_numbers(outputs: Any, count: int) -> int:
    """Samples of a batch that some answer is NaN for; not, where answers belong to no sample."""
    parts = [t for t in tensors(outputs) if t.is_floating_point() and t.dim() and len(t) == count]
    if not any(bool(part.isnan().any()) for part in parts):
        return 0
    undefined = torch.stack([part.isnan().reshape(count, -1).any(1) for part in parts])
    return int(undefined.any(0).sum())


def _plain(tensor: Tensor) -> Tensor:
    found = tensor.detach().cpu()
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found

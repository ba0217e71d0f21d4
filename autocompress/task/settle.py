"""Which task a study has: the given one, the one that targets leave no doubt of, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.results.metric import ACCURACY, FRACTION, METRICS, Metric
from autocompress.task.batches import IGNORED
from autocompress.task.calling import call_or_refuse, described, told_apart
from autocompress.task.data import Data, Split
from autocompress.task.divergence import divergence_of
from autocompress.task.metrics import TaskMetric
from autocompress.task.nested import batch_size, map_tensors, take, tensors, with_tensors
from autocompress.task.outputs import OutputKind, hits, label_loss, output_kind
from autocompress.task.pick import the_tensor
from autocompress.task.ready import READY, binary, classification
from autocompress.task.split import Row
from autocompress.task.streamed import StreamedSplit
from autocompress.task.targets import FOREGROUND, class_targets, refuse_nan
from autocompress.task.task import Task

_SPLITS = ("train", "val", "test")
_LOOKED_AT = 512
"""Targets of a streamed split that are looked at before anything runs."""
_COMPARED = 64
"""Texts that are compared with their targets."""


def settle(data: Data, predict: Callable[[Any], Any]) -> tuple[Task, tuple[str, ...]]:
    """The task of a study, its targets held against the model's outputs.

    Args:
        data: three splits, with or without a ``task``, or a ``metric``.
        predict: from a batch of inputs to the model's outputs.

    Returns:
        The task, and remarks on how targets are read.

    Raises:
        InputError: the task is not certain, targets do not fit, or the model does not run on the
            inputs; the message has the remedy.
    """
    inputs, few = next(iter(data.train.batches(2)))
    with torch.inference_mode():
        outputs = call_or_refuse(predict, inputs)
        _one_part_per_sample(outputs, few, lambda: predict(take(inputs, slice(0, 1))))
    _samples_first(outputs, few, lambda: predict(take(inputs, slice(0, 1))))
    answer = partial(_answered, predict, inputs, outputs)
    outputs, many = _beside(answer, data.train, few)
    if data.task is not None:
        task = data.task
    elif data.metric is not None:
        task = implied(data, outputs)
    else:
        try:
            task = _certain(outputs, many, data.train)
        except InputError as error:
            raise InputError(f"{error}{_apart(inputs)}") from None
        if data.loss is not None:
            task = replace(task, loss=data.loss, smooths=False)
    notes: dict[str, list[str]] = {}
    for name in _SPLITS:
        split = getattr(data, name)
        if not data.dynamic:
            _of_one_size(name, inputs, _first(split, None)[0])
        for note in _checked(task, name, *_beside(answer, split, None), inputs):
            notes.setdefault(note, []).append(name)
    of = {
        note: "" if len(names) == 3 else f" ({', '.join(names)})" for note, names in notes.items()
    }
    return task, tuple(note + names for note, names in of.items())


def watched(data: Data, predict: Callable[[Any], Any]) -> Data:
    """Data with a task whose later targets are held against the outputs, too, as they are read.

    Args:
        data: with a task that ``settle`` found to fit the first targets of each split.
        predict: from a batch of inputs to the model's outputs.
    """
    task = data.task
    if task is None or task.check is None:
        return data
    inputs = data.train.inputs(2)
    with torch.inference_mode():
        answer = partial(_answered, predict, inputs, predict(inputs))

    def with_check(name: str, split: Split) -> Split:
        if not isinstance(split, StreamedSplit) or split.labels is not None:
            return split
        outputs, known = _beside(answer, split, None)
        outputs, like = map_tensors(torch.clone, outputs), take(known, slice(0, 1))
        return split.checked_by(lambda new: _checked(task, name, outputs, _folded(new, like)))

    parts = {name: with_check(name, getattr(data, name)) for name in _SPLITS}
    return replace(data, train=parts["train"], val=parts["val"], test=parts["test"])


def _checked(
    task: Task, name: str, outputs: Any, targets: Any, inputs: Any = None
) -> tuple[str, ...]:
    """Remarks on how the targets of a split are read; what is wrong is said with its name."""
    try:
        return task.checked(outputs, targets)
    except InputError as error:
        raise InputError(
            f"The targets of {name} do not fit the task ({task}): {error}{_apart(inputs)}"
        ) from None


def _apart(inputs: Any) -> str:
    """How batches of several parts are read, where the inputs are such."""
    return told_apart((*inputs, None)) if type(inputs) is tuple else ""


def _of_one_size(name: str, inputs: Any, others: Any) -> None:
    """Refuse samples of other sizes than the first of train, where no axis is said to be free.

    Args:
        name: of the split.
        inputs: the first two of train.
        others: two of the split, padded as many of it are.
    """
    if others is None or _sizes(inputs) == _sizes(others):
        return
    raise InputError(
        f"A file takes samples of one size. The first of `train` come as {described(inputs)}, "
        f"others of `{name}` as {described(others)}. Let the axis be free: `dynamic: auto` in the "
        'study\'s `data` section, or dynamic="auto" in Python; or bring all samples to one size in '
        "the data set or its `collate_fn` (tokenizers: `padding='max_length'`)."
    )


def _sizes(inputs: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in tensors(inputs)]


def _samples_first(outputs: Any, few: Any, again: Callable[[], Any]) -> None:
    """Refuse answers whose second axis counts samples, as recurrent layers give them by default.

    Args:
        outputs: of a few samples.
        few: their targets.
        again: answers the first of them alone.
    """
    count = batch_size(few)
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or len(outputs) == count or count < 2:
        return
    if outputs.shape[1] == count and again().shape[:2] == (len(outputs), 1):
        raise InputError(
            f"Outputs come with the samples first, but this model gives {tuple(outputs.shape)} for "
            f"{count} samples: they come second. Compress a module that turns them: `forward` "
            "returns `self.model(x).transpose(0, 1)`."
        )


def _one_part_per_sample(outputs: Any, few: Any, again: Callable[[], Any]) -> None:
    """Refuse answers with a part of its own for each sample, which no file can hold.

    Args:
        outputs: of a few samples.
        few: their targets.
        again: answers the first of them alone.
    """
    if type(outputs) not in (list, tuple) or len(outputs) != batch_size(few) or len(outputs) < 2:
        return
    alone = again()
    if type(alone) in (list, tuple) and len(alone) == 1:
        raise InputError(
            "A model must answer with the same tensors for any number of samples; this one gives "
            f"{len(outputs)} parts for {len(outputs)} samples and one for one, as torchvision's "
            "detectors do, whose boxes differ in number from image to image. A file cannot. "
            "Compress the part before boxes are selected: a module that returns what the heads "
            "say, with the selection in the task's `decode`; docs/tasks.md shows it."
        )


def first_targets(split: Split, few: Any) -> Any:
    """All targets of a split in memory, the first of a streamed one.

    Args:
        split: any.
        few: what is known of the split already, where it has nothing else to give.
    """
    return _first(split, few)[1]


def _first(split: Split, few: Any) -> Row:
    """The inputs of two samples, and the targets of many that are padded alike."""
    known = split.labels if isinstance(split, StreamedSplit) else getattr(split, "targets", None)
    if known is not None:
        return split.inputs(2), known
    found = next(iter(split.batches(_LOOKED_AT, limit=_LOOKED_AT)), None)
    return (None, few) if found is None else (take(found[0], slice(0, 2)), found[1])


def _beside(answer: Callable[[Any], Any], split: Split, few: Any) -> Row:
    """Outputs and targets of a split that may be held against each other."""
    inputs, targets = _first(split, few)
    return answer(inputs), targets


def _answered(predict: Callable[[Any], Any], inputs: Any, outputs: Any, others: Any) -> Any:
    """What a model answers to inputs that may be padded to other lengths than those it has seen."""
    if others is None or _sizes(inputs) == _sizes(others):
        return outputs
    with torch.inference_mode():
        return call_or_refuse(predict, others)


def _folded(targets: Any, like: Any) -> Any:
    """Targets of other lengths than the outputs at hand, as more samples of their length.

    The model itself is not asked again: it may be under observation while data are read.

    Args:
        targets: of a batch, nested.
        like: targets that are padded as those outputs are.
    """
    parts, wanted = tensors(targets), tensors(like)
    return with_tensors(targets, [_fold(p, w) for p, w in zip(parts, wanted, strict=True)])


def _fold(targets: Tensor, like: Tensor) -> Tensor:
    if targets.dim() != like.dim():
        return targets
    for axis in range(1, targets.dim()):
        have, want = targets.shape[axis], like.shape[axis]
        if have != want and have and want:
            places = torch.arange(-(-have // want) * want).clamp(max=have - 1)
            pieces = targets.index_select(axis, places).split(want, axis)
            targets = torch.cat(pieces)
    return targets


def implied(data: Data, outputs: Any) -> Task:
    """The task that data are trained by: their own, or what the kind of outputs implies.

    Never refuses: where nothing judges numbers, asking for their quality does.

    Args:
        data: three splits.
        outputs: of a few training samples.
    """
    if data.task is not None:
        return data.task
    found = the_tensor(outputs)
    kind = output_kind(found, first_targets(data.train, None))

    def loss(outputs: Any, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        return label_loss(the_tensor(outputs), targets, kind, smoothing)

    right = TaskMetric(
        ACCURACY.name,
        FRACTION,
        "maximize",
        lambda o, t: hits(the_tensor(o), t, kind),
        per_sample=True,
    )
    metric = right if data.metric is None else _named(data.metric)
    return Task(
        metric,
        data.loss or loss,
        divergence_of(kind),
        name=_KINDS[kind],
        smooths=data.loss is None,
    )


_KINDS: dict[OutputKind, str] = {
    "classes": "classification",
    "binary": "binary classification",
    "value": "numbers",
}


def _named(function: Callable[..., Any]) -> TaskMetric:
    """The metric of data that bring a function: more is better, and its name is the function's."""
    name = getattr(function, "__name__", "metric")
    if not name.isidentifier() or (name in METRICS and name != ACCURACY.name):
        name = "metric"
    return TaskMetric(name, FRACTION if name == ACCURACY.name else "", "maximize", function)


def renamed(task: Task, quality: Metric) -> Task:
    """The same task with its quality under another name, that of an earlier run."""
    first, *others = task.measured
    name = replace(first, name=quality.name, unit=quality.unit, margin=quality.margin)
    return replace(task, metrics=(name, *others))


def _certain(outputs: Any, many: Any, train: Split) -> Task:
    """The task, where integer targets in the range of the outputs leave no doubt."""
    try:
        found = the_tensor(outputs)
    except InputError as error:
        raise _unsure(f"{error}", outputs, many, "") from None
    if not isinstance(many, Tensor):
        raise _unsure("Targets are no single tensor.", outputs, many, "")
    refuse_nan(many)
    mask = _mask(found, many)
    if mask:
        raise _unsure(mask, outputs, many, "binary_segmentation")
    one_column = found.dim() < 2 or found.shape[-1] == 1
    if one_column:
        if bool(((many == 0) | (many == 1)).all()):
            return replace(binary(), detail="(from one logit and targets 0 and 1)")
        raise _unsure("One column of outputs is a number.", outputs, many, "regression")
    classes, positions = found.shape[-1], tuple(found.shape[1:-1])
    likely = _likely(found, many, train)
    if likely:
        raise _unsure("Several tasks have such outputs and targets.", outputs, many, likely)
    try:
        read, _ = class_targets(many, classes, positions)
    except InputError as error:
        raise _unsure(str(error), outputs, many, "") from None
    low, high = int(read.min()), int(read.max())
    return replace(
        classification(),
        detail=f"into {classes} classes (from integer targets {low} to {high})",
    )


def _mask(outputs: Tensor, many: Tensor) -> str:
    """What is said of one logit per pixel and a mask; nothing where they are something else."""
    pixels = outputs.shape[2:]
    alike = many.shape[1:] in (pixels, outputs.shape[1:])
    if len(pixels) < 2 or outputs.shape[1] != 1 or not alike:
        return ""
    one = many == 1
    if not bool(((many == 0) | one | (many == 255)).all()):
        return ""
    divided = "" if bool(one.any()) else f" {FOREGROUND}"
    return f"One channel and masks may be one logit per pixel.{divided}"


def _likely(outputs: Tensor, many: Tensor, train: Split) -> str:
    """What outputs and targets look like, where that is no plain classification."""
    if many.is_floating_point() and bool((many != many.round()).any()):
        return "regression"
    if many.shape[1:] == outputs.shape[1:] and not bool((many.double().sum(-1) == 1).all()):
        return "multi_label" if bool(((many == 0) | (many == 1)).all()) else "regression"
    if outputs.dim() < 3:
        return ""
    if many.shape[1:] == (*outputs.shape[2:],) and many.shape[1:] != outputs.shape[1:-1]:
        return "segmentation"
    return _of_tokens(outputs.shape[-1], bool((many == IGNORED).any()), train)


def _of_tokens(classes: int, padded: bool, train: Split) -> str:
    """What a class per token may be for.

    Args:
        classes: of the outputs.
        padded: some tokens have no target.
        train: whose texts are held against their targets.
    """
    inputs, few = next(iter(train.batches(_COMPARED)))
    own = [t for t in tensors(inputs) if t.shape == few.shape and not t.is_floating_point()]
    own = [t for t in own if int(t.max()) > 1]  # the others are masks, or the kinds of tokens
    told = few != IGNORED
    if not bool(told.any()):
        return "token_classification" if padded else ""
    if any(bool((t == few)[told].all()) for t in own):
        return "causal_language_model"
    for tokens in own if padded else ():
        # most tokens that are asked for are hidden behind one mark, and any token may be there
        shown = tokens[told]
        hidden = float((shown == shown.mode().values).float().mean())
        if hidden > 0.5 and int(tokens.max()) < classes and not bool((shown == few[told]).all()):
            return "masked_language_model"
    return "token_classification" if padded else ""


def _unsure(why: str, outputs: Any, targets: Any, likely: str) -> InputError:
    name = likely or "NAME"
    guess = f" They look like those of `{likely}`." if likely else ""
    return InputError(
        f"What the model is for is not certain: outputs {described(outputs)}, targets "
        f"{described(targets)}. {why}{guess} Say it with `task: {name}` in the study's `data` "
        f'section, or task="{name}" in Python; ready-made are {", ".join(READY)}. A metric of '
        "your own: autocompress.Task."
    )

"""What a batch of anyone's loader holds: inputs here, targets there; and how batches are joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.boxes import as_boxes, has_boxes, is_boxes, is_list_of_boxes, join_boxes
from autocompress.task.calling import told_apart
from autocompress.task.nested import batch_size, concat, named_tensors, tensors, with_tensors

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
"""Keys of a batch that hold the targets, the first that is there."""

IGNORED = -100
"""What labels are padded with: torch's losses leave it out."""


@dataclass(frozen=True)
class Reader:
    """Takes a batch apart.

    Args:
        input_fn: from a batch to the model's inputs; ``None`` goes by how the batch is built.
        target_fn: from a batch to the targets; ``None`` likewise.
    """

    input_fn: Callable[[Any], Any] | None = None
    target_fn: Callable[[Any], Any] | None = None

    @property
    def plain(self) -> bool:
        """Whether it goes by how batches are built alone."""
        return self.input_fn is None and self.target_fn is None

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of a batch.

        Raises:
            InputError: a batch that does not say which is which.
        """
        whole = self.input_fn is not None and self.target_fn is not None
        inputs, targets = (None, None) if whole else self._parts(batch)
        if self.input_fn is not None:
            inputs = self.input_fn(batch)
        if self.target_fn is not None:
            targets = self.target_fn(batch)
        inputs, targets = as_parts(inputs, targets)
        if isinstance(targets, int | float) or (isinstance(targets, Tensor) and not targets.dim()):
            raise InputError(
                "A batch must hold several samples, and this one has a single number for its "
                "targets: it is one sample. Give the loader a `batch_size`; with `batch_size=None` "
                "every item of its data set must be a whole batch."
            )
        for what, value in (("inputs", inputs), ("targets", targets)):
            if not tensors(value):
                raise InputError(
                    f"The {what} of a batch hold no tensor, found {_said(value)}. Turn texts and "
                    "pictures into tensors in the data set, or give "
                    f"`{'input_fn' if what == 'inputs' else 'target_fn'}`: from a batch to its "
                    f"{what}.{told_apart(batch)}"
                )
        sizes = batch_size(inputs), batch_size(targets)
        if sizes[0] != sizes[1]:
            raise InputError(
                f"A split needs as many targets as inputs, a batch has {sizes[0]} inputs and "
                f"{sizes[1]} targets. Give `input_fn` and `target_fn`."
            )
        return inputs, targets

    def _parts(self, batch: Any) -> tuple[Any, Any]:
        """By how the batch is built: a pair, the last of several, or the key of the labels."""
        if isinstance(batch, Mapping):
            key = next((key for key in TARGET_KEYS if key in batch), None)
            if key is None and self.target_fn is None:
                raise InputError(
                    f"A batch with the keys {list(batch)} has no targets among them (looked for "
                    f"{', '.join(TARGET_KEYS)}). Give `target_fn`, e.g. `target_fn=lambda batch: "
                    "batch['...']`."
                )
            rest = {str(k): v for k, v in batch.items() if k not in TARGET_KEYS}
            inputs = {name: value for name, value in rest.items() if _numeric(value)}
            return inputs, None if key is None else batch[key]
        if isinstance(batch, tuple | list) and len(batch) >= 2:
            first = batch[0] if len(batch) == 2 else tuple(batch[:-1])
            return tuple(first) if isinstance(first, list) else first, batch[-1]
        if self.input_fn is None and self.target_fn is None:
            raise InputError(
                f"A split must yield (input, target), got {_said(batch)}. Give `input_fn` and "
                "`target_fn`: from a batch to the model's inputs, and to the targets."
            )
        return batch, None


def as_parts(inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Inputs and targets as tensors; of images with boxes, one tensor each.

    Raises:
        InputError: images of unlike sizes, or boxes that do not fit.
    """
    if not is_list_of_boxes(targets):
        return as_tensors(inputs), as_tensors(targets)
    inputs, targets = as_tensors(inputs), as_boxes(targets)
    # an image for each target, and not one input after another
    if type(inputs) not in (tuple, list) or len(inputs) != len(targets):
        return inputs, targets
    if not all(isinstance(image, Tensor) and image.dim() == 3 for image in inputs):
        return inputs, targets
    shapes = {tuple(image.shape) for image in inputs}
    if len(shapes) > 1:
        raise InputError(
            f"Images of unlike sizes cannot be put into one batch: {sorted(shapes)[:3]}. Resize or "
            "pad them, and their boxes with them, in the data set or its `collate_fn`."
        )
    return torch.stack(list(inputs)), targets


def as_tensors(value: Any) -> Any:
    """The same structure with arrays, numbers and lists of numbers as tensors."""
    if isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "fiub":
        return torch.as_tensor(np.asarray(value))
    if isinstance(value, list) and _of_numbers(value):
        return torch.as_tensor(value)
    if isinstance(value, Mapping):
        changed = {k: as_tensors(v) for k, v in value.items()}
        return value if all(changed[k] is v for k, v in value.items()) else changed
    if type(value) in (tuple, list):
        return type(value)(as_tensors(v) for v in value)
    return value


def _of_numbers(value: Any) -> bool:
    """Whether a list, of lists of one length, holds nothing but numbers."""
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(part, int | float) for part in value):
        return True
    alike = all(isinstance(p, list) and len(p) == len(value[0]) for p in value)
    return alike and all(_of_numbers(part) for part in value)


def _numeric(value: Any) -> bool:
    """Whether something has numbers for each sample; a single number has not."""
    return any(tensor.dim() for tensor in tensors(as_tensors(value)))


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def collate(rows: Sequence[Any]) -> Any:
    """One batch of a data set's rows, where no loader says how.

    Rows that are mappings become a mapping of tensors: numbers, arrays, lists of numbers, tensors.
    Texts and the like become lists. Lists of unlike length are padded, see ``join``.
    """
    if isinstance(rows[0], tuple | list) and has_boxes(rows[0][-1]):
        *inputs, targets = zip(*rows, strict=True)
        parts = inputs if len(inputs) == 1 else [_stacked(part) for part in inputs]
        return (*parts, targets)
    if isinstance(rows[0], tuple | list) and len({len(row) for row in rows}) == 1:
        return [_stacked(part) for part in zip(*rows, strict=True)]
    if not isinstance(rows[0], Mapping):
        return _stacked(rows)
    columns = {key: [_column(row[key]) for row in rows] for key in rows[0]}
    kept = {k: parts for k, parts in columns.items() if all(p is not None for p in parts)}
    others = {key: _other([row[key] for row in rows]) for key in rows[0] if key not in kept}
    if not kept:
        return others
    singles = [{k: parts[i][None] for k, parts in kept.items()} for i in range(len(rows))]
    return {**join(singles), **others}


def _other(values: list[Any]) -> Any:
    """What is no array for any sample: mappings become one of what they have numbers of."""
    if not all(isinstance(value, Mapping) and not has_boxes(value) for value in values):
        return values
    return {name: found for name, found in collate(values).items() if tensors(found)} or values


def _stacked(parts: Sequence[Any]) -> Any:
    """One part of all samples as torch puts it together; what it cannot (pictures) as a list.

    Raises:
        InputError: tensors of unlike sizes.
    """
    from torch.utils.data import default_collate

    try:
        return default_collate(list(parts))
    except TypeError:
        return list(parts)
    except RuntimeError as error:
        raise InputError(
            f"Samples of unlike sizes cannot be put into one batch ({error}). Resize or pad them "
            "in the data set or its `collate_fn`; where every item of the data set is a whole "
            "batch, hand over `DataLoader(data, batch_size=None)`."
        ) from error


def _column(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str | bytes) or value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unlike lengths inside one row
        return None
    return torch.as_tensor(array) if array.dtype.kind in "fiub" else None


def join(parts: Sequence[Any]) -> Any:
    """Batches joined along the first axis; texts of unlike lengths are padded at their ends.

    Padded is what has an ``attention_mask`` that says so (with zeros; the ids with what stands
    where other rows are masked), and labels per position (with -100).

    Raises:
        InputError: other structures, or other sizes that nothing says how to pad.
    """
    named = [named_tensors(part) for part in parts]
    shapes = [[(n, tuple(t.shape[1:])) for n, t in part] for part in named]
    if all(own == shapes[0] for own in shapes):
        return concat(list(parts))
    names = [name for name, _ in named[0]]
    if any([n for n, _ in part] != names for part in named):
        return concat(list(parts))  # says what differs
    if "attention_mask" not in (name.rpartition(".")[2] for name in names):
        odd = next(own for own in shapes if own != shapes[0])
        raise InputError(
            f"Samples of unlike sizes cannot be put into one batch: {shapes[0]} and {odd}. Resize "
            "or pad them in the data set or its `collate_fn`; texts need an `attention_mask`."
        )
    return concat([_padded(part, named) for part in parts])


def join_targets(parts: Sequence[Any]) -> Any:
    """The same for targets; labels per position are padded with -100, boxes with class -1."""
    shapes = {tuple(part.shape[1:]) for part in parts if isinstance(part, Tensor)}
    if len(shapes) > 1 and all(isinstance(p, Tensor) and is_boxes(p) for p in parts):
        return join_boxes(parts)
    named = [named_tensors(part) for part in parts]
    per_position = all(t.dim() == 2 and not t.is_floating_point() for p in named for _, t in p)
    alike = len({t.shape[1:] for part in named for _, t in part}) == 1
    if per_position and not alike and len({len(part) for part in named}) == 1:
        return concat([_padded(part, named, IGNORED) for part in parts])
    return concat(list(parts))


def _padded(part: Any, named: Sequence[list[tuple[str, Tensor]]], fill: int | None = None) -> Any:
    """One batch with every tensor as long as the longest of its name."""
    out = []
    for place, (name, tensor) in enumerate(named_tensors(part)):
        shape = [max(sizes) for sizes in zip(*(p[place][1].shape[1:] for p in named), strict=True)]
        missing = [w - s for w, s in zip(shape, tensor.shape[1:], strict=True)]
        pads = [p for gap in reversed(missing) for p in (0, gap)]
        value = _filling(name, named) if fill is None else fill
        out.append(F.pad(tensor, pads, value=value) if any(missing) else tensor)
    return with_tensors(part, out)


def _filling(name: str, named: Sequence[list[tuple[str, Tensor]]]) -> int:
    last = name.rpartition(".")[2]
    if last in TARGET_KEYS:
        return IGNORED
    if last != "input_ids":
        return 0
    for part in named:
        held = {n.rpartition(".")[2]: t for n, t in part}
        masked = held["input_ids"][held["attention_mask"] == 0]
        if len(masked):
            return int(masked[0])
    return 0

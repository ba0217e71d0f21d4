"""Axes of a model's inputs that may have any size: the batch always, others where it is said.

``{input_ids: {1: sequence}}`` frees axis 1 of the input ``input_ids`` and calls it ``sequence``;
axes of one name have one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError, nearest
from autocompress.task.calling import call, input_names
from autocompress.task.nested import tensors, with_tensors

Axes = Mapping[str, Mapping[int, str]]
"""Input name to its free axes beside the batch, each by its own name."""

AUTO = "auto"
"""Asks for the axes to be found: by trying another size."""


def read_axes(given: Any, inputs: Any) -> dict[str, dict[int, str]]:
    """Free axes as they were written, checked against a model's inputs.

    Args:
        given: input name to its axes: by number with a name each, or a list of numbers.
        inputs: one batch.

    Raises:
        InputError: an input or an axis that is not there, or axes of one name and several sizes.
    """
    parts = dict(zip(input_names(inputs), tensors(inputs), strict=True))
    if not isinstance(given, Mapping):
        raise InputError(
            "`dynamic` reads `{input: {axis: name}}`, e.g. `{input_ids: {1: sequence}}`, or "
            f"`auto`, got {given!r}."
        )
    found: dict[str, dict[int, str]] = {}
    for name, axes in given.items():
        if name not in parts:
            raise InputError(f"`dynamic`: there is no input {name!r}; {nearest(str(name), parts)}")
        listed = axes if isinstance(axes, Mapping) else dict.fromkeys(axes)
        found[name] = {}
        for axis, label in listed.items():
            place = int(axis)
            if not 0 < place < parts[name].dim():
                raise InputError(
                    f"`dynamic.{name}` names axis {axis}: the input has the shape "
                    f"{tuple(parts[name].shape)}, and its axis 0, the batch, is always free."
                )
            found[name][place] = str(label) if label is not None else f"{name}_{place}"
    sizes_of(inputs, found)
    return found


def sizes_of(inputs: Any, axes: Axes) -> dict[str, int]:
    """Axis name to its size in a batch of inputs.

    Raises:
        InputError: axes of one name have several sizes.
    """
    found: dict[str, int] = {}
    for name, tensor in zip(input_names(inputs), tensors(inputs), strict=True):
        for axis, label in axes.get(name, {}).items():
            size = tensor.shape[axis]
            if found.setdefault(label, size) != size:
                raise InputError(
                    f"The free axis {label!r} is {found[label]} long in one input and {size} in "
                    f"{name!r}. Give axes that need not be equally long names of their own."
                )
    return found


def resized(inputs: Any, axes: Axes, sizes: Mapping[str, int]) -> Any:
    """The same inputs with other sizes: cut off at the end, or repeated from the start.

    Args:
        inputs: one batch.
        axes: which of its axes are free.
        sizes: axis name to the new size; others stay.
    """
    parts = []
    for name, tensor in zip(input_names(inputs), tensors(inputs), strict=True):
        for axis, label in axes.get(name, {}).items():
            if label in sizes:
                index = torch.arange(sizes[label], device=tensor.device) % tensor.shape[axis]
                tensor = tensor.index_select(axis, index)
        parts.append(tensor)
    return with_tensors(inputs, parts)


def other_size(module: nn.Module, inputs: Any, axes: Axes) -> Any | None:
    """The first of ``other_sizes``; ``None`` if there is none."""
    return next(other_sizes(module, inputs, axes), None)


def other_sizes(module: nn.Module, inputs: Any, axes: Axes) -> Iterator[Any]:
    """The same inputs at half and at twice their size, where the module takes that.

    Args:
        module: in eval mode.
        inputs: one batch.
        axes: which of its axes are free.
    """
    sizes = sizes_of(inputs, axes)
    for scaled in (
        {name: max(1, size // 2) for name, size in sizes.items()},
        {name: 2 * size for name, size in sizes.items()},
    ):
        changed = resized(inputs, axes, scaled)
        if scaled == sizes:
            continue
        try:
            with torch.no_grad():
                call(module, changed)
        except Exception:  # a size that the model does not take; another one is tried
            continue
        yield changed


def candidates(inputs: Any) -> list[dict[str, dict[int, str]]]:
    """Axes that might be free, one set after another: those of one size go together.

    Height and width of images are told apart, so that either may be free alone.
    """
    by_label: dict[str, dict[str, dict[int, str]]] = {}
    for name, tensor in zip(input_names(inputs), tensors(inputs), strict=True):
        for axis in range(1, tensor.dim()):
            label = _label(tensor, axis)
            if label is not None:
                key = f"{label}@{tensor.shape[axis]}"
                by_label.setdefault(key, {}).setdefault(name, {})[axis] = label
    found, taken = [], set()
    for key, axes in by_label.items():
        label = key.partition("@")[0]
        if label in taken:  # another size under the same word
            new = key.replace("@", "_")
            axes = {n: dict.fromkeys(own, new) for n, own in axes.items()}
        taken.add(label)
        found.append(axes)
    return found


def _label(tensor: Tensor, axis: int) -> str | None:
    """What people call an axis; ``None`` of one that is never free: channels, features."""
    if tensor.dim() == 4 and tensor.is_floating_point():
        return {2: "height", 3: "width"}.get(axis)
    if tensor.dim() == 2 and tensor.is_floating_point():
        return None  # columns of a table
    return "sequence" if tensor.shape[axis] > 1 else None

"""Tensors in nested inputs, outputs and targets: tuples, lists, mappings and dataclasses.

The one place that knows how a batch or an answer may be built. A tensor is a structure of one.
What is no tensor (numbers, texts, ``None``, caches) is carried along and not looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError


def named_tensors(value: Any) -> list[tuple[str, Tensor]]:
    """Every tensor of a structure with its path, in order.

    Args:
        value: nested; the path of a part is its key, field or place: ``"logits"``, ``"0.boxes"``.
            A tensor by itself has an empty path.
    """
    if isinstance(value, Tensor):
        return [("", value)]
    return [
        (f"{name}.{path}" if path else name, tensor)
        for name, part in _parts(value)
        for path, tensor in named_tensors(part)
    ]


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of a structure, in order."""
    return [tensor for _, tensor in named_tensors(value)]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure with every tensor replaced by the function's."""
    if isinstance(value, Tensor):
        return function(value)
    parts = _parts(value)
    if not parts:
        return value
    return _like(value, [map_tensors(function, part) for _, part in parts])


def with_tensors(value: Any, replacements: Sequence[Tensor]) -> Any:
    """The same structure with its tensors replaced, in the order of ``tensors``.

    Raises:
        InputError: another number of tensors than the structure holds.
    """
    wanted = len(tensors(value))
    if wanted != len(replacements):
        raise InputError(f"A structure of {wanted} tensors was given {len(replacements)}.")
    left = iter(replacements)
    return map_tensors(lambda _: next(left), value)


def concat(values: Sequence[Any]) -> Any:
    """Structures of batches joined along the first axis; all built alike.

    Raises:
        InputError: structures that differ, or tensors that do not fit together.
    """
    if not values:
        raise InputError("Nothing to join: no batch was given.")
    if len(values) == 1:
        return values[0]
    names = [[name for name, _ in named_tensors(value)] for value in values]
    if any(own != names[0] for own in names):
        odd = next(own for own in names if own != names[0])
        raise InputError(f"Batches must be built alike: one holds {names[0]}, another {odd}.")
    columns = zip(*(tensors(value) for value in values), strict=True)
    try:
        joined = [torch.cat(column) for column in columns]
    except RuntimeError as error:
        raise InputError(f"Batches do not fit together: {error}") from None
    return with_tensors(values[0], joined)


def take(value: Any, index: Tensor | slice) -> Any:
    """The samples at some indices, of every tensor."""
    return map_tensors(lambda tensor: tensor[index], value)


def batch_size(value: Any) -> int:
    """Samples of a batch: the first axis, of which every tensor has as many.

    Raises:
        InputError: no tensor with a first axis, or tensors that disagree.
    """
    sizes = {name: len(tensor) for name, tensor in named_tensors(value) if tensor.dim()}
    if len(set(sizes.values())) != 1:
        raise InputError(f"Every tensor of a batch needs the same first axis, found {sizes}.")
    return next(iter(sizes.values()))


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Named parts of a structure; none of anything else."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(str(i), part) for i, part in enumerate(value)]
    return []


def _like(value: Any, parts: list[Any]) -> Any:
    """A structure of the same type with other parts."""
    if isinstance(value, Mapping):
        return _mapping_like(value, iter(parts))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        return dataclasses.replace(value, **dict(zip(names, parts, strict=True)))
    if hasattr(value, "_fields"):
        return type(value)(*parts)
    return type(value)(parts)


def _mapping_like(value: Mapping[Any, Any], parts: Iterator[Any]) -> Any:
    """A mapping of the same type; of one that is also a dataclass (Hugging Face), by fields."""
    found = {key: next(parts) for key in value}
    if dataclasses.is_dataclass(value):
        return type(value)(**found)
    try:
        return type(value)(found)  # type: ignore[call-arg]  # mappings take a dictionary
    except TypeError:  # a constructor of its own: a plain dictionary has the same keys
        return found

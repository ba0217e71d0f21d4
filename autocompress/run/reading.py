"""How data are read, as keywords of the Python surface. Light: it is part of every call's type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from autocompress.errors import nearest


class Reading(TypedDict, total=False):
    """How data are read; keywords of ``search`` and of ``Data.wrap``.

    Args:
        input_fn: from a batch to the model's inputs, where the batch does not say what is what.
        target_fn: from a batch to the targets, likewise.
        memory: budget of decoded samples, such as ``"2GB"``; by default a quarter of what the
            machine has free.
        length: samples to take of streams without a length, for all splits or by split.
        groups: per sample of ``train``, what belongs together, where splits are cut from it.
        dynamic: input name to its free axes beside the batch, e.g.
            ``{"input_ids": {1: "sequence"}}`` or, without a name, ``{"input_ids": [1]}``; or
            ``"auto"`` to find them.
    """

    input_fn: Callable[[Any], Any]
    target_fn: Callable[[Any], Any]
    memory: str | int
    length: int | Mapping[str, int]
    groups: Any
    dynamic: Mapping[str, Mapping[int, str] | Sequence[int]] | str


def file_part(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Of how data are read, what a study file can say.

    Raises:
        TypeError: an unknown keyword.
    """
    for name in reading:
        if name not in Reading.__annotations__:
            near = nearest(name, Reading.__annotations__)
            raise TypeError(f"There is no keyword {name!r}; {near}")
    return {k: v for k, v in reading.items() if k in ("memory", "length", "dynamic")}

"""Which part of a model's outputs or of the targets a task is about."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autocompress.errors import InputError
from autocompress.task.nested import named_tensors


def the_tensor(value: Any, path: str | None = None, what: str = "outputs") -> Tensor:
    """One tensor of a structure.

    Args:
        value: a tensor, or nested ones.
        path: of the tensor, such as ``logits`` or ``0.boxes``; ``None`` is the only one there is,
            or the one that is called ``logits``.
        what: for the error's text.

    Raises:
        InputError: no such tensor, or several and no path.
    """
    if isinstance(value, Tensor) and path is None:
        return value
    found = dict(named_tensors(value))
    if path is not None:
        if path in found:
            return found[path]
        raise InputError(f"The {what} have no {path!r}; they hold {_names(found)}.")
    if len(found) == 1:
        return next(iter(found.values()))
    if "logits" in found:
        return found["logits"]
    raise InputError(
        f"The {what} hold several tensors ({_names(found)}), and which of them the task is about "
        "is not said. Give the task the one to judge by: `output: NAME` in a study file's "
        '`data.task.args`, output="NAME" in Python.'
    )


def _names(found: dict[str, Tensor]) -> str:
    shown = [f"{name or 'one'} {tuple(tensor.shape)}" for name, tensor in found.items()]
    return ", ".join(shown) or "no tensor"

"""Models whose way depends on values: `a(x) if float(x.sum()) > 20 else b(x)`.

A value must become a Python number for that. Where one does, the model is looked at on other
values than the given ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.task.calling import call
from autocompress.task.dispatch import OperatorMode
from autocompress.task.nested import batch_size, map_tensors, take, tensors

_SAMPLES = 4
"""That are looked at one by one."""
_CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x * 4,
    lambda x: x * 0.25,
    lambda x: -x,
)


_OUTSIDE = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
"""Read values without any operator of torch."""


class _ReadingOutside(TorchFunctionMode):
    """Notes whether values were handed to something else than torch."""

    found = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.found |= func in _OUTSIDE
        return func(*args, **(kwargs or {}))


class _Reading(OperatorMode):
    """Notes whether a value became a number."""

    found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.found |= func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def reads_values(model: nn.Module, inputs: Any) -> bool:
    """Whether values become Python numbers, truths or arrays while the model runs."""
    with _Reading() as reading, _ReadingOutside() as outside:
        call(model, inputs)
    return reading.found or outside.found


def other_values(inputs: Any) -> Iterator[Any]:
    """Inputs of the same kind that may lead a model another way: one sample, larger, smaller.

    Of whole numbers (tokens, masks) the later half becomes zeros.
    """
    for i in range(min(_SAMPLES, batch_size(inputs)) if batch_size(inputs) > 1 else 0):
        yield take(inputs, slice(i, i + 1))
    for change in _CHANGES:
        yield map_tensors(partial(_changed, change), inputs)
    if not all(tensor.is_floating_point() for tensor in tensors(inputs)):
        yield map_tensors(_ended, inputs)


def _ended(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.dim() < 2:
        return tensor
    kept = torch.arange(tensor.shape[-1]) < (tensor.shape[-1] + 1) // 2
    return tensor * kept.to(tensor.device)


def _changed(change: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    return change(tensor) if tensor.is_floating_point() else tensor


@torch.no_grad()
def layers_by_choice(model: nn.Module, inputs: Any) -> list[str]:
    """Modules that run on some values and not on others; empty for almost every model.

    Args:
        model: in eval mode; not changed.
        inputs: one batch.
    """
    if not reads_values(model, inputs):
        return []
    found: list[set[str]] = []
    for values in (inputs, *other_values(inputs)):
        with noting(model) as ran:
            try:
                call(model, values)
            except Exception:  # values that the model does not take tell nothing
                continue
        found.append(ran)
    always = set.intersection(*found) if found else set()
    chosen = {name for ran in found for name in ran if name not in always}
    return [name for name, _ in model.named_modules() if name in chosen]


@contextmanager
def noting(model: nn.Module) -> Iterator[set[str]]:
    """Names of the modules that run in here."""
    ran: set[str] = set()

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args: ran.add(name)

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in model.named_modules()]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()

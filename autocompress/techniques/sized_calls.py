"""Modules whose forward says sizes or places of channels, after some of these are gone.

``x.view(n, 8, 16)``, ``x.chunk(2, 1)``, ``x[:, :4]``: what they say fits the channels that were
there. A pruned model keeps its forward, and these calls are corrected while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.model.call_sites import CALLS, CUT, SIZED, running_module


@dataclass(frozen=True)
class Loss:
    """What one tensor of a call lost.

    Args:
        axis: along which channels lie.
        size: before.
        gone: places that went.
    """

    axis: int
    size: int
    gone: tuple[int, ...]

    @property
    def left(self) -> int:
        """Size after."""
        return self.size - len(self.gone)


Losses = Mapping[str, Loss]
"""``i`` for the input and ``o0``, ``o1``, ... for what is given."""


def correct_calls(module: nn.Module, sides: Mapping[str, Sequence[int]]) -> None:
    """Let a module's forward run with the sizes that are left.

    Args:
        module: changed in place.
        sides: ``NUMBER/TENSOR/AXIS/SIZE``, see ``SlicingPlan``, to the places that go.
    """
    calls: dict[int, dict[str, Loss]] = {}
    for side, gone in sides.items():
        number, key, axis, size = side.split("/")
        calls.setdefault(int(number), {})[key] = Loss(int(axis), int(size), tuple(gone))
    module.forward = CorrectedForward(module, calls, vars(module).get("forward"))


class CorrectedForward:
    """Stands in for a module's forward; it can be copied and pickled along with the module.

    Args:
        module: whose forward it is.
        calls: number of a call to what its tensors lost.
        before: a forward of the object's own, instead of its class's.
    """

    def __init__(self, module: nn.Module, calls: Mapping[int, Losses], before: Any = None) -> None:
        self.module, self.calls, self.before = module, calls, before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module answers."""
        with _Correcting(self.module, self.calls):
            if self.before is not None:
                return self.before(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)


class _Correcting(TorchFunctionMode):
    def __init__(self, module: nn.Module, calls: Mapping[int, Losses]) -> None:
        super().__init__()
        self.module, self.calls, self.number = module, calls, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        sized = name in CALLS and args and isinstance(args[0], Tensor)
        if sized and running_module(2) is self.module:
            losses = self.calls.get(self.number)
            self.number += 1
            if losses is not None:
                return _corrected(name, func, args, kwargs, losses)
        return func(*args, **kwargs)


def _corrected(name: str, func: Any, args: Any, kwargs: Any, losses: Losses) -> Any:
    if name in SIZED:
        return _resized(name, func, args, kwargs, losses)
    if name in CUT:
        return _split(name, func, args, kwargs, losses)
    return _taken(name, func, args, kwargs, losses)


def _resized(name: str, func: Any, args: Any, kwargs: Any, losses: Losses) -> Any:
    """The sizes that are asked for, where they are those from before."""
    loss = losses.get("o0")
    x, rest = args[0], list(args[1:])
    if loss is None or not rest:
        return func(*args, **kwargs)
    axis = loss.axis
    head: list[Any] = []
    if name == "unflatten":
        at = rest[0] if isinstance(rest[0], int) else 0
        head, rest, axis = rest[:1], rest[1:], loss.axis - at % x.dim()
    sizes = list(rest[0]) if rest and isinstance(rest[0], tuple | list) else rest
    if not 0 <= axis < len(sizes) or isinstance(sizes[0], torch.dtype):
        return func(*args, **kwargs)
    wanted = x.shape[args[1]] if name == "unflatten" else x.numel()
    asked = int(sizes[axis])
    fits = -1 not in sizes and math.prod(int(s) for s in sizes) == wanted
    if asked != -1 and (name == "expand" or not fits):
        if asked == loss.size:
            sizes[axis] = loss.left
        elif asked * loss.left % loss.size == 0 and asked != loss.left:
            # several of them, one after another, as with the batch's samples
            sizes[axis] = asked * loss.left // loss.size
    return func(x, *head, tuple(sizes), **kwargs)


def _split(name: str, func: Any, args: Any, kwargs: Any, losses: Losses) -> Any:
    """Parts as they were, less what each of them lost."""
    x = args[0]
    given = dict(zip(("sizes", "dim"), args[1:], strict=False))
    dim = int(kwargs.get("dim", given.get("dim", 0))) % x.dim()
    loss = losses.get("i")
    if loss is None or loss.axis != dim:
        return func(*args, **kwargs)
    whole = torch.arange(loss.size)
    how = given.get("sizes", next((v for k, v in kwargs.items() if k != "dim"), None))
    parts = getattr(torch, name)(whole, how if isinstance(how, int) else list(how))
    gone = set(loss.gone)
    sizes = [sum(i not in gone for i in part.tolist()) for part in parts]
    return torch.split(x, sizes, dim)


def _taken(name: str, func: Any, args: Any, kwargs: Any, losses: Losses) -> Any:
    """The places that are asked for, where they lie now."""
    x, loss = args[0], losses.get("i")
    if loss is None:
        return func(*args, **kwargs)
    left = torch.ones(loss.size, dtype=torch.bool)
    left[list(loss.gone)] = False
    now = left.cumsum(0) - 1
    if name == "narrow":
        dim, start, length = int(args[1]) % x.dim(), int(args[2]), int(args[3])
        if dim != loss.axis:
            return func(*args, **kwargs)
        places = torch.arange(loss.size)[start : start + length]
        return _select(x, dim, now[places[left[places]]])
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    at = _place_of(index, loss.axis, x.dim())
    if at is None:
        return func(*args, **kwargs)
    places = torch.arange(loss.size)[index[at]]
    if places.dim() == 0:
        new: Any = int(now[places])
    else:
        new = _as_slice(now[places[left[places]]])
    return func(x, (*index[:at], new, *index[at + 1 :]))


def _place_of(index: tuple[Any, ...], axis: int, dims: int) -> int | None:
    """Which part of an index speaks of an axis; ``None`` where it is taken whole."""
    used = sum(1 for part in index if part is not None and part is not Ellipsis)
    at = 0
    for place, part in enumerate(index):
        if part is None:
            continue
        if part is Ellipsis:
            at += dims - used
            continue
        if at == axis:
            return None if part == slice(None) else place
        at += 1
    return None


def _as_slice(places: Tensor) -> Any:
    """Places as a slice where they follow one another."""
    if len(places) and bool((places.diff() == 1).all()):
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def _select(x: Tensor, dim: int, places: Tensor) -> Tensor:
    found = _as_slice(places)
    if isinstance(found, slice):
        return x.narrow(dim, found.start, found.stop - found.start)
    return x.index_select(dim, places)

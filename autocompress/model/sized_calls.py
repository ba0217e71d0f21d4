"""Modules whose forward says sizes, places or numbers of channels, after some of these are gone.

``x.view(n, 8, 16)``, ``x.chunk(2, 1)``, ``x[:, :4]``, ``x.mean(1)``, ``x.roll(2, 1)`` fit the
channels that were there. A pruned model keeps its forward, and these calls are corrected while it
runs.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.errors import UnsupportedModel
from autocompress.model.call_sites import (
    AVERAGED,
    CALLS,
    CUT,
    SIZED,
    TURNED,
    Counted,
    code_of,
    earlier,
    running_module,
)
from autocompress.model.places import as_slice, parts_of, place_of
from autocompress.model.sides import CallAxis


@dataclass(frozen=True)
class Removal:
    """Channels that one tensor of a call lost.

    Args:
        axis: along which channels lie; -1 where it lost nothing.
        shape: before.
        gone: places that went.
    """

    axis: int
    shape: tuple[int, ...]
    gone: tuple[int, ...]

    @property
    def size(self) -> int:
        """Channels before."""
        return self.shape[self.axis]

    @property
    def left(self) -> int:
        """Channels after."""
        return self.size - len(self.gone)


OfTensors = Mapping[str, Removal]
"""``i`` for the input and ``o0``, ``o1``, ... for what is given."""


def correct_calls(module: nn.Module, sides: Mapping[CallAxis, Sequence[int]]) -> None:
    """Let a module's forward run with the sizes that are left.

    Args:
        module: changed in place.
        sides: of calls in its forward, to the places that go.
    """
    calls: dict[str, dict[str, Removal]] = {}
    for side, gone in sides.items():
        own = calls.setdefault(side.call, {})
        # of several runs of a module, one with channels
        if side.tensor not in own or own[side.tensor].axis < 0:
            own[side.tensor] = Removal(side.axis, side.shape, tuple(gone))
    module.forward = CorrectedForward(module, calls, vars(module).get("forward"))


class CorrectedForward:
    """Stands in for a module's forward; it can be copied and pickled along with the module.

    Args:
        module: whose forward it is.
        calls: name of a call to what its tensors lost.
        before: a forward of the object's own, instead of its class's.

    Attributes:
        concerned: names, without counts, of the calls that said something of channels.
    """

    def __init__(
        self, module: nn.Module, calls: Mapping[str, OfTensors], before: Any = None
    ) -> None:
        self.module, self.calls, self.before = module, calls, before
        self.concerned: set[str] = set()

    @property
    def _original(self) -> Callable[..., Any]:
        """The forward that this one stands in for."""
        return self.before or type(self.module).forward.__get__(self.module)

    # what `torch.export` reads of a forward: which inputs it takes, and where it is written

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original)

    @property
    def __code__(self) -> CodeType:
        return getattr(self._original, "__code__", type(self).__call__.__code__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module answers."""
        # calls are told apart by frames, which compiled code has not; slow to load, if not in use
        compiler = sys.modules.get("torch._dynamo")
        run = CorrectedForward._run if compiler is None else compiler.disable(CorrectedForward._run)
        return run(self, args, kwargs)

    def _run(self, args: Any, kwargs: Any) -> Any:
        with _Correcting(self):
            return self._original(*args, **kwargs)

    def corrected(self, call: str, func: Any, args: Any, kwargs: Any) -> Any:
        """One call, as it must be now.

        Args:
            call: its name, see ``model.call_sites``.
            func, args, kwargs: of the call.

        Raises:
            UnsupportedModel: it is none of those that channels were followed through.
        """
        removals = self._removals(call)
        if removals is None:
            return func(*args, **kwargs)
        if (name := func.__name__) in SIZED:
            new = _resized(name, args, removals.get("o0"))
        elif name in CUT:
            new = _split(name, args, kwargs, removals.get("i"))
        elif name in AVERAGED:
            new = _averaged(func, args, kwargs, removals.get("i"))
        elif name in TURNED:
            new = _turned(func, args, kwargs, removals.get("i"))
        else:
            new = _taken(name, args, removals.get("i"))
        if new is None:
            return func(*args, **kwargs)
        self.concerned.add(code_of(call))
        return new()

    def _removals(self, call: str) -> OfTensors | None:
        """What the tensors of a call lost; where its code runs once more, as always before."""
        if call in self.calls:
            return self.calls[call]
        before = [self.calls[name] for name in earlier(call) if name in self.calls]
        if any(_kind(removals) != _kind(before[0]) for removals in before):
            raise UnsupportedModel(
                f"{_text(call)} runs more often than when channels were followed, and what it "
                "reads differed from run to run: the pruned model cannot tell what it reads now. "
                "Leave axes that change how often it runs fixed, or leave out the layers before it."
            )
        return before[0] if before else None


def _kind(removals: OfTensors) -> Any:
    """What must be alike for one call to be corrected as another is."""
    return {key: (removal.axis, removal.size, removal.gone) for key, removal in removals.items()}


def _text(call: str) -> str:
    place, _, name = code_of(call).rpartition("|")
    return f"The call of {name!r} in {place.partition(':')[0] or 'a layer of torch'}"


class _Correcting(TorchFunctionMode):
    """Corrects the calls of one run."""

    def __init__(self, forward: CorrectedForward) -> None:
        super().__init__()
        self.forward, self.counted = forward, Counted()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in CALLS and args and isinstance(args[0], Tensor):
            module, place = running_module(2)
            if _same(module, self.forward.module):
                call = self.counted.name(place, name)
                return self.forward.corrected(call, func, args, kwargs)
        return func(*args, **kwargs)


def _same(running: Any, module: nn.Module) -> bool:
    """Whether they are one module; ``torch.export`` runs copies that share its attributes."""
    return running is not None and vars(running) is vars(module)


def _number(size: Any) -> int:
    """A size as a number; of one that stays free while a program is exported, the example's.

    ``int`` of a free size would make it a constant of the program.
    """
    hint = size.node.hint if isinstance(size, torch.SymInt) else None
    return int(size if hint is None else hint)


New = Callable[[], Any] | None
"""The corrected call; ``None`` where it says nothing of channels, or always what is right."""


def _resized(name: str, args: Any, removal: Removal | None) -> New:
    """The sizes that are asked for, where these do not fit what is left."""
    x, rest = args[0], list(args[1:])
    if removal is None or not rest or isinstance(rest[0], torch.dtype):
        return None
    at, whole = 0, _number(x.numel())
    if name == "unflatten":
        at = rest.pop(0) % x.dim()
        whole = _number(x.shape[at])
    asked = list(rest[0]) if isinstance(rest[0], tuple | list) else rest
    before = removal.shape[at : at + len(asked)]
    axis = removal.axis - at
    sizes = _fitting(asked, before, removal, axis, None if name == "expand" else whole)
    if sizes is None:
        if removal.axis < 0 or not 0 <= axis < len(asked) or _number(asked[axis]) == -1:
            return None
        sizes = tuple(asked)  # it fits; where other channels go it need not
    found = sizes
    if name == "unflatten":
        return lambda: x.unflatten(at, found)
    return lambda: getattr(x, name)(found)


def _fitting(
    asked: Sequence[Any], before: Sequence[int], removal: Removal, axis: int, whole: int | None
) -> tuple[Any, ...] | None:
    """Sizes as asked, with what is left along the channels' axis; ``None`` to leave them.

    Args:
        asked: sizes, perhaps one of them -1.
        before: the sizes that were given for the whole model.
        removal: of what is given.
        axis: of the channels among these sizes.
        whole: elements that the sizes must multiply to, if they must.
    """
    numbers = [_number(size) for size in asked]
    open_ended = -1 in numbers
    # along the first axis samples may lie as well, and any number is possible
    stale = bool(removal.gone) and 0 < axis < len(asked) and numbers[axis] == removal.size
    fits = not open_ended and math.prod(numbers) == whole
    if whole is not None and fits and not stale:
        return None
    tries = list(_tries(numbers, before, removal, axis))
    if whole is not None and not open_ended:
        tries = [sizes for sizes in tries if math.prod(sizes) == whole]
    if not tries or tries[0] == numbers:
        return None
    kept = zip(tries[0], numbers, asked, strict=True)
    return tuple(_followed(new, number, size, removal) for new, number, size in kept)


def _followed(new: int, number: int, asked: Any, removal: Removal) -> Any:
    """A new size, in terms of what was asked for where an exporter follows where that came from."""
    if new == number:
        return asked
    if isinstance(asked, torch.SymInt) and new * removal.size == number * removal.left:
        return asked * removal.left // removal.size
    return new


def _tries(
    asked: list[int], before: Sequence[int], removal: Removal, axis: int
) -> Iterator[list[int]]:
    """What may have been meant, the most likely first."""
    sizes = list(asked)
    if 0 <= axis < len(sizes) and removal.axis >= 0:
        own = sizes[axis]
        if own == removal.size:
            sizes[axis] = removal.left
        elif own not in (-1, removal.left) and own * removal.left % removal.size == 0:
            # several of them, one after another, as with the batch's samples
            sizes[axis] = own * removal.left // removal.size
    yield sizes
    for place, size in enumerate(before):
        if place not in (0, axis):  # a size that was taken from channels elsewhere, which went
            yield [*sizes[:place], size, *sizes[place + 1 :]]
    if 0 <= axis < len(sizes) and removal.axis >= 0:
        yield [*asked[:axis], removal.left, *asked[axis + 1 :]]


def _split(name: str, args: Any, kwargs: Any, removal: Removal | None) -> New:
    """Parts as they were, less what each of them lost."""
    x = args[0]
    given = dict(zip(("sizes", "dim"), args[1:], strict=False))
    dim = int(kwargs.get("dim", given.get("dim", 0))) % x.dim()
    if removal is None or removal.axis != dim:
        return None
    _must_fit(x, removal)
    how = given.get("sizes", next((v for k, v in kwargs.items() if k != "dim"), None))
    how = how if isinstance(how, int) else list(how or ())
    gone = set(removal.gone)
    sizes = [sum(i not in gone for i in part) for part in parts_of(name, removal.size, how)]
    return lambda: torch.split(x, sizes, dim)


def _averaged(func: Any, args: Any, kwargs: Any, removal: Removal | None) -> New:
    """A mean over all channels that were there; those that went are zeros in it."""
    if removal is None or not removal.gone:
        return None
    _must_fit(args[0], removal)
    return lambda: func(*args, **kwargs) * (removal.left / removal.size)


def _turned(func: Any, args: Any, kwargs: Any, removal: Removal | None) -> New:
    """A turn by as many places as those that are left of the ones that came to the front."""
    given = dict(zip(("shifts", "dims"), args[1:], strict=False)) | kwargs
    listed = [
        x if isinstance(x, tuple | list) else (x,) for x in (given["shifts"], given.get("dims", ()))
    ]
    shifts, dims = ([int(n) for n in numbers] for numbers in listed)
    axes = [dim % args[0].dim() for dim in dims]
    if removal is None or not removal.gone or removal.axis not in axes:
        return None
    _must_fit(args[0], removal)
    for place in (i for i, axis in enumerate(axes) if axis == removal.axis):
        first = removal.size - shifts[place] % removal.size
        shifts[place] = sum(i not in removal.gone for i in range(first, removal.size))
    return lambda: func(args[0], shifts, dims)


def _must_fit(x: Tensor, removal: Removal) -> None:
    """See that a call reads what it read when channels were followed, less what went.

    Raises:
        UnsupportedModel: it does not.
    """
    if x.dim() == len(removal.shape) and _number(x.shape[removal.axis]) == removal.left:
        return
    raise UnsupportedModel(
        f"A call of the pruned model's forward takes channels from {tuple(x.shape)}, which lay "
        f"along axis {removal.axis} of {removal.shape} before; {removal.left} of them are left. "
        "Inputs of this size were not tried: give `dynamic`, so that they are, or leave the layers "
        "before it out of the space."
    )


def _taken(name: str, args: Any, removal: Removal | None) -> New:
    """The places that are asked for, where they lie now."""
    x = args[0]
    if removal is None:
        return None
    if name == "narrow":
        dim = int(args[1]) % x.dim()
        if dim != removal.axis:
            return None
        start = _number(args[2])
        index: tuple[Any, ...] = (slice(None),) * dim + (slice(start, start + _number(args[3])),)
    else:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
    at = place_of(index, removal.axis, x.dim())
    if at is None:
        return None
    _must_fit(x, removal)
    if isinstance(index[at], int | slice):  # in plain numbers, which `torch.export` can trace
        gone = set(removal.gone)
        left = {old: new for new, old in enumerate(i for i in range(removal.size) if i not in gone)}
        asked = range(removal.size)[index[at]]
        plain: Any = (
            left[asked]
            if isinstance(asked, int)
            else as_slice([left[i] for i in asked if i in left])
        )
        return lambda: x[(*index[:at], plain, *index[at + 1 :])]
    stays = torch.ones(removal.size, dtype=torch.bool)
    stays[list(removal.gone)] = False
    now = stays.cumsum(0) - 1
    places = torch.arange(removal.size)[index[at]]
    new: Any = int(now[places]) if places.dim() == 0 else now[places[stays[places]]]
    return lambda: x[(*index[:at], new, *index[at + 1 :])]

"""Which columns of a data set a model takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.task.calling import call, described, told_apart
from autocompress.task.nested import map_tensors, named_tensors, tensors


@dataclass(frozen=True)
class Selection:
    """From the columns of a data set to those that a model takes; picklable.

    Args:
        names: columns that are kept; ``None`` hands over the only one by position.
        before: from stored inputs to columns; ``None`` leaves them.
        dropped: columns that the model does not take.
        whole: the model takes the mapping of them as one argument.
    """

    names: tuple[str, ...] | None
    before: Callable[[Any], Any] | None = None
    dropped: tuple[str, ...] = ()
    whole: bool = False

    def __call__(self, stored: Any) -> Any:
        """The model's inputs."""
        columns = stored if self.before is None else self.before(stored)
        if self.names is None:
            return next(iter(columns.values()))
        chosen = {name: columns[name] for name in self.names}
        return (chosen,) if self.whole else chosen

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know."""
        if not self.dropped:
            return ()
        return (f"Columns that the model does not take were left out: {', '.join(self.dropped)}.",)

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> Selection | None:
        """What a model takes of the inputs; ``None`` where that is all of them.

        Where a forward takes keywords that it does not name, each column is tried.

        Args:
            model: in eval mode.
            inputs: a few samples.

        Raises:
            InputError: none of several columns is a parameter of the model, or whether it reads one
                of them cannot be found out.
        """
        _check_count(model, inputs)
        if not isinstance(inputs, Mapping):
            return None
        parameters = inspect.signature(model.forward).parameters
        kept = tuple(name for name in inputs if name in parameters)
        if len(kept) == len(inputs):
            return None
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            kept = _read(model, dict(inputs), kept)
            if len(kept) == len(inputs):
                return None
        if kept:
            return cls(kept, dropped=tuple(str(n) for n in inputs if n not in kept))
        if len(inputs) == 1:
            return cls(None)
        needed = [p for p in parameters.values() if p.default is inspect.Parameter.empty]
        if len(needed) == 1 and not isinstance(_try(model, (dict(inputs),)), Exception):
            return cls(tuple(inputs), whole=True)
        raise InputError(
            f"The model's forward takes {', '.join(parameters)}; a batch of the data has "
            f"{', '.join(map(str, inputs))}. Rename the columns, or give `input_fn`, e.g. "
            f"`input_fn=lambda batch: {_by_position(inputs, len(needed))}` to hand them over "
            "by position."
        )


def _check_count(model: nn.Module, inputs: Any) -> None:
    """Refuse more inputs by position than a forward takes.

    Raises:
        InputError: how a batch is read, and how to say otherwise.
    """
    if type(inputs) is not tuple:
        return
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*inputs)
    except TypeError as error:
        raise InputError(
            f"The model's forward takes {', '.join(signature.parameters)}, and the data give it "
            f"{len(inputs)} inputs: {described(inputs)} ({error}).{told_apart((*inputs, None))}"
        ) from None


def _by_position(columns: Mapping[str, Any], taken: int) -> str:
    """What might go into a forward that takes so many inputs; those of many numbers first."""
    large = sorted(columns, key=lambda n: -sum(t.dim() > 1 for t in tensors(columns[n])))
    parts = [f"batch[{name!r}]" for name in large[: max(1, taken)]]
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _read(model: nn.Module, columns: dict[str, Any], named: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that a forward with free keywords reads.

    Args:
        model: in eval mode.
        columns: a few samples.
        named: those that its signature names; they are read.

    Raises:
        InputError: a column that is taken with some others, or fails in there.
    """
    taken = dict(columns)
    failure = _try(model, taken)
    if isinstance(failure, Exception):
        taken = {name: columns[name] for name in named}
        for name in columns:
            if name in named:
                continue
            more = {**taken, name: columns[name]}
            failure = _try(model, more)
            if not isinstance(failure, Exception):
                taken = more
            elif not _unknown(failure, name):
                if isinstance(_try(model, taken), Exception):
                    # it runs on nothing that there is, which is said where it is run
                    return tuple(columns) if named or len(columns) > 1 else ()
                raise InputError(
                    f"The model's forward takes any keyword, and fails with the column {name!r} of "
                    f"the data ({type(failure).__name__}: {failure}), so that it is not certain "
                    f"whether it reads it. Say what goes in by `input_fn`, e.g. {_example(taken)}."
                )
    return tuple(n for n in columns if n in taken and (n in named or _matters(model, taken, n)))


def _example(columns: Mapping[str, Any]) -> str:
    each = ", ".join(f"{name!r}: batch[{name!r}]" for name in columns)
    return f"`input_fn=lambda batch: {{{each}}}`"


def _unknown(error: Exception, name: str) -> bool:
    """Whether an error says that a call has no such parameter."""
    return (
        isinstance(error, TypeError) and "unexpected keyword" in str(error) and name in str(error)
    )


def _matters(model: nn.Module, columns: Mapping[str, Any], name: str) -> bool:
    """Whether an answer depends on a column: on its values, or on its being there."""
    before = _try(model, columns)
    others = {key: value for key, value in columns.items() if key != name}
    changed = ({**columns, name: other} for other in _others(columns[name]))
    return any(not _same(before, _try(model, given)) for given in (others, *changed))


def _others(column: Any) -> Iterator[Any]:
    """A column with other values, most of which such a column may have."""
    changes: tuple[Callable[[Tensor], Tensor], ...] = (
        torch.zeros_like,
        torch.ones_like,
        lambda x: x.roll(1, -1) if x.dim() else x,
        lambda x: x.roll(1, 0) if x.dim() else x,
    )
    for change in changes:
        yield map_tensors(change, column)


@torch.no_grad()
def _try(model: nn.Module, inputs: Any) -> Any:
    """A model's answer, or the exception that it raises."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        try:
            return call(model, inputs)
        except Exception as error:  # a forward of anyone's; the error is looked at
            return error


def _same(one: Any, other: Any) -> bool:
    """Whether answers are alike to the last bit; errors are so to nothing."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        return False
    first, second = named_tensors(one), named_tensors(other)
    return [name for name, _ in first] == [name for name, _ in second] and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        for (_, a), (_, b) in zip(first, second, strict=True)
    )

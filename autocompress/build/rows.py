"""Which rows of a model's tables are read, and how often, while a model runs on training inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.task.nested import tensors
from autocompress.task.split import Split

_PORTION = 4096


@dataclass(frozen=True)
class RowCounts:
    """How often the rows of one table were read.

    Args:
        counts: ``(rows,)`` integers.
        samples: of the inputs that were looked at.
    """

    counts: Tensor
    samples: int

    @property
    def unread(self) -> int:
        """Rows that nothing read."""
        return int((self.counts == 0).sum())


@dataclass
class _Reads:
    """What one table was asked for so far.

    Args:
        counts: ``(rows,)``.
        inputs: places among the input tensors that held the same indices at every read.
    """

    counts: Tensor
    inputs: set[int] | None = None


@dataclass
class RowReads:
    """Reads of tables while a model runs; made by ``watched``."""

    tables: dict[str, _Reads]
    given: list[Tensor] = field(default_factory=list)

    def note(self, name: str, ids: Tensor) -> None:
        """One read of a table, at some places."""
        reads, flat = self.tables[name], ids.detach().flatten().long()
        reads.counts += torch.bincount(flat.cpu(), minlength=len(reads.counts))
        same = {
            place
            for place, tensor in enumerate(self.given)
            if tensor.numel() == flat.numel() and torch.equal(tensor.flatten().long(), flat)
        }
        reads.inputs = same if reads.inputs is None else reads.inputs & same

    def result(self, samples: int, train: Split) -> dict[str, RowCounts]:
        """The counts of every table that was read.

        A table that is read at the places that an input tensor holds is counted on all training
        inputs, without a run, where they lie in memory.

        Args:
            samples: that the model ran on.
            train: which they come from.
        """
        counted = {}
        for name, reads in self.tables.items():
            if reads.inputs is None:
                continue
            counts, seen = reads.counts, samples
            if reads.inputs and type(train) is Split:
                counts, seen = torch.zeros_like(counts), len(train)
                for inputs, _ in train.batches(_PORTION):
                    ids = _indices(inputs)[min(reads.inputs)].flatten().long()
                    counts += torch.bincount(ids.cpu(), minlength=len(counts))
            counted[name] = RowCounts(counts, seen)
        return counted


@contextmanager
def watched(model: nn.Module, tables: Mapping[str, Sequence[str]]) -> Iterator[RowReads]:
    """Count the rows that a model's runs read.

    Args:
        model: that will run.
        tables: name of a table to those of the layers that pick its rows, it among them.

    Yields:
        What was read, to be asked afterwards.
    """
    sizes = {name: len(model.get_submodule(name).get_parameter("weight")) for name in tables}
    reads = RowReads({n: _Reads(torch.zeros(size, dtype=torch.long)) for n, size in sizes.items()})

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        reads.given = _indices((args, kwargs))

    def read(name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            for ids in _indices((args, kwargs))[:1]:
                reads.note(name, ids)

        return note

    handles = [model.register_forward_pre_hook(enter, with_kwargs=True)]
    for name, layers in tables.items():
        for layer in layers:
            module = model.get_submodule(layer)
            handles.append(module.register_forward_pre_hook(read(name), with_kwargs=True))
    try:
        yield reads
    finally:
        for handle in handles:
            handle.remove()


def _indices(value: Any) -> list[Tensor]:
    """The integer tensors of a structure."""
    return [t for t in tensors(value) if not t.is_floating_point() and not t.is_complex()]

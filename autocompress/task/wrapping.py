"""From anything that gives samples to a split: held in memory where it fits, streamed otherwise."""

from __future__ import annotations

import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from autocompress.errors import InputError
from autocompress.machine.scratch import make_scratch
from autocompress.task.batches import Reader, as_parts, collate, join, join_targets
from autocompress.task.boxes import is_boxes
from autocompress.task.cutting import Draws
from autocompress.task.memory import Memory
from autocompress.task.nested import batch_size, map_tensors, take, tensors, with_tensors
from autocompress.task.seeded import Seeded
from autocompress.task.split import Row, Split, as_bytes
from autocompress.task.streamed import (
    CachedRows,
    DatasetRows,
    StreamedSplit,
    check_complete,
    known_labels,
    without_workers,
)

_CHUNK = 256
_ROUNDS = 10
"""Through a data set, after which a sampler without a length is taken for an endless one."""


def wrap_split(
    source: Any,
    *,
    reader: Reader | None = None,
    memory: Memory | None = None,
    length: int | None = None,
    limit: int | None = None,
) -> Split:
    """Any source of samples as a split.

    What lies in memory is taken as it is, without a copy. What fits into the budget is read once.
    The rest is read when it is needed, and kept as far as the budget goes.

    Args:
        source: a ``Split``, an ``(inputs, targets)`` pair, a ``DataLoader``, a data set with
            ``__len__`` and ``__getitem__`` (torch's, Hugging Face's), or an ``IterableDataset``.
        reader: takes a batch apart.
        memory: the budget.
        length: samples to take of a stream.
        limit: samples to take of anything.

    Raises:
        InputError: no such source, one that is empty or does not say what is what, or a stream
            without a length.
    """
    split, draws = wrap_drawn(source, reader=reader, memory=memory, length=length, limit=limit)
    return split if draws is None else split.subset(draws.order)


def wrap_drawn(
    source: Any,
    *,
    reader: Reader | None = None,
    memory: Memory | None = None,
    length: int | None = None,
    limit: int | None = None,
) -> tuple[Split, Draws | None]:
    """The same; of a loader that draws samples more than once, every sample once, and the draws.

    Returns:
        The samples, and how often a loader draws them; ``None`` where that is never twice.
    """
    memory, reader = memory or Memory.of(), reader or Reader()
    if isinstance(source, tuple) and len(source) == 2:
        inputs, targets = as_parts(*source) if reader.plain else reader(source)
        source = Split(_in_memory(inputs), _in_memory(targets))
    elif isinstance(source, Split) and not reader.plain:
        raise InputError(
            "`input_fn` and `target_fn` say how batches are read, and a `Split` is read already. "
            "Apply them where it is made, or let its `preprocess` do what `input_fn` does."
        )
    if isinstance(source, Split):
        if limit is not None:
            source = source.subset(torch.arange(min(limit, len(source))))
        return source, None
    most = min((n for n in (length, limit) if n is not None), default=None)
    rows = _rows(source, reader, most)
    if rows is None:
        with Seeded():
            return _stream(source, reader, memory, most), None
    if most is not None and rows.order is None and most < len(rows):
        rows.order = list(range(most))
    if len(rows) == 0:
        raise InputError("A split is empty.")
    draws = _once(rows, source)
    held = _held(rows)
    if held is not None:
        return Split(*held), draws
    first = rows.read([0])
    copies = 0 if draws is None else len(draws.order)
    if memory.reserve(_size(first) * (len(rows) + copies)):
        places = range(len(rows))
        parts = [rows.read(places[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)]
        split = _all(parts)
        if draws is not None:
            check_complete((split.stored, split.targets), len(rows))
        return split, draws
    _warn_of_change(rows, first)
    labels = known_labels(rows, first[1])
    return StreamedSplit(CachedRows(rows, memory), labels=labels), draws


def _once(rows: DatasetRows, source: Any) -> Draws | None:
    """Let rows be every sample that a loader may draw, once; what it draws of them.

    With weights that is every sample that has one, as those not drawn are mostly light. Nothing is
    changed where no sample is drawn twice.
    """
    if rows.order is None:
        return None
    order = torch.as_tensor(rows.order)
    once = order.unique()
    if len(once) == len(order):
        return None
    sampler = source.sampler
    if type(sampler) is WeightedRandomSampler and len(sampler.weights) == len(rows.dataset):
        once = torch.as_tensor(sampler.weights).nonzero().flatten()
    rows.order = once.tolist()
    return Draws(once, torch.searchsorted(once, order), len(rows.dataset))


def _warn_of_change(rows: DatasetRows, first: Row) -> None:
    """Warn where a sample is another one each time it is read."""
    again = rows.read([0])
    pairs = zip((*tensors(first[0]), *tensors(first[1])), tensors(again), strict=True)
    if not all(torch.equal(as_bytes(a), as_bytes(b)) for a, b in pairs):
        warnings.warn(
            f"A sample of {type(rows.dataset).__name__} is another one each time it is read: it "
            "draws from a generator of its own. Compressed models are then compared with the "
            "original on other inputs, and a run cannot be resumed. Leave random transforms out, "
            "or let them draw from the generators of torch, numpy or random.",
            stacklevel=5,
        )


def _in_memory(value: Any) -> Any:
    """A part of an ``(inputs, targets)`` pair as tensors; arrays share their memory."""
    return value if tensors(value) else torch.as_tensor(value)


def _rows(source: Any, reader: Reader, most: int | None) -> DatasetRows | None:
    """Rows by place, where the source has places."""
    if isinstance(source, DataLoader):
        if isinstance(source.dataset, IterableDataset) or source.batch_sampler is None:
            return None
        if not hasattr(source.dataset, "__getitem__"):
            return None
        own = source.collate_fn
        chosen = collate if own is default_collate else own  # ours does what torch's does, and more
        return DatasetRows(source.dataset, chosen, reader, _order(source, most))
    sized = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if sized and not isinstance(source, Mapping | str | IterableDataset):
        return DatasetRows(source, collate, reader)
    return None


def _order(loader: DataLoader[Any], most: int | None) -> list[int] | None:
    """Which samples a loader gives: all of them in the data set's order, unless it chooses.

    Raises:
        InputError: it goes on and on, and nothing says how many to take.
    """
    if type(loader.sampler) in (SequentialSampler, RandomSampler):
        plain = not getattr(loader.sampler, "replacement", False)
        whole = getattr(loader.sampler, "num_samples", len(loader.dataset)) == len(loader.dataset)  # type: ignore[arg-type]  # it has a length
        if plain and whole and type(loader.batch_sampler).__module__.startswith("torch."):
            return None
    batches: Any = loader.batch_sampler
    count = len(loader.dataset)  # type: ignore[arg-type]  # it has a length
    try:
        batches = islice(batches, len(batches))
    except (TypeError, NotImplementedError, ValueError):  # whichever says that there is none
        known = False
    else:
        known = True
    with Seeded():
        found = (int(i) for batch in batches for i in batch)
        order = list(islice(found, most if most is not None or known else _ROUNDS * count + 1))
    if most is None and not known and len(order) > _ROUNDS * count:
        raise InputError(
            f"{type(loader.sampler).__name__} has no length and gave over {_ROUNDS} times the "
            f"{count} samples of its data set: it may never end. Give `length`, the number of "
            f"samples to take of it, e.g. `length={{'train': {count}}}`."
        )
    return order


def _held(rows: DatasetRows) -> Row | None:
    """Inputs and targets of a data set whose tensors lie in memory, without a copy."""
    if rows.collate is not collate:
        return None
    dataset, index = rows.dataset, rows.order
    if isinstance(dataset, Subset) and type(dataset.dataset) is TensorDataset:
        inner = [int(i) for i in dataset.indices]
        index = inner if index is None else [inner[i] for i in index]
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset:
        return None
    parts: Any = dataset.tensors
    if index is not None:
        parts = tuple(part[torch.as_tensor(index)] for part in parts)
    return rows.reader(list(parts))


def _size(row: Row) -> int:
    return sum(part.nbytes for part in (*tensors(row[0]), *tensors(row[1])))


def _all(batches: Sequence[Row]) -> Split:
    return Split(join([b[0] for b in batches]), join_targets([b[1] for b in batches]))


def _stream(source: Any, reader: Reader, memory: Memory, length: int | None) -> Split:
    """Samples of a source that can only be read from its start."""
    if isinstance(source, Mapping | str) or not hasattr(source, "__iter__"):
        raise InputError(
            "A split must be a Dataset or DataLoader of (input, target), got "
            f"{type(source).__name__}."
        )
    batches = _batches(source, reader)
    exact = length is not None or not _ready_batches(source)
    first = next(batches, None) if length is not None or _own_length(source) else None
    if first is None:
        raise InputError("A split is empty.")
    if length is None:  # a data set of batches tells how many these are
        length = _own_length(source) * (1 if exact else batch_size(first[1]))
    each = _size(first) // batch_size(first[1])
    found: Iterator[Row] = chain([first], batches)
    if exact:
        found = _first(found, length)
    if memory.reserve(each * length):
        split = _all(list(found))
    else:
        split = StreamedSplit(CachedRows(_spool(found, length, each * length), memory))
    if exact and len(split) < length:
        raise InputError(
            f"A stream of {length} samples ended after {len(split)}. Give the `length` that it has."
        )
    return split


def _ready_batches(source: Any) -> bool:
    """Whether a loader's data set gives whole batches."""
    return isinstance(source, DataLoader) and source.batch_size is None


def _own_length(source: Any) -> int:
    """Samples of a stream, or its batches where it gives these, as far as it knows them."""
    dataset: Any = source.dataset if isinstance(source, DataLoader) else source
    try:
        return len(dataset)
    except TypeError:
        raise InputError(
            f"{type(dataset).__name__} is a stream without a length: it may never end. Give "
            "`length`, the number of samples to take of it, e.g. `length={'train': 50_000}`."
        ) from None


def _batches(source: Any, reader: Reader) -> Iterator[Row]:
    if isinstance(source, DataLoader):
        for batch in without_workers(source):
            yield reader(batch)
        return
    samples = iter(source)
    while some := list(islice(samples, _CHUNK)):
        yield reader(collate(some))


def _first(batches: Iterator[Row], length: int) -> Iterator[Row]:
    """The first so many samples."""
    left = length
    for inputs, targets in batches:
        count = batch_size(targets)
        yield take(inputs, slice(0, left)), take(targets, slice(0, left))
        left -= count
        if left <= 0:
            return


class SpooledRows:
    """Rows of a stream, written to disk once so that they can be read in any order.

    Args:
        folder: with a file per tensor; removed when nothing reads it any more.
        like: one row, which says how a batch is built.
        count: rows.
        targets: of all rows, where these are kept in memory.
    """

    def __init__(self, folder: Path, like: Row, count: int, targets: Tensor | None = None) -> None:
        self.folder, self.like, self.count, self.targets = folder, like, count, targets

    def __len__(self) -> int:
        return self.count

    def read(self, places: Sequence[int]) -> Row:
        """See ``Rows``."""
        parts = []
        written = self.like if self.targets is None else self.like[0]
        for number, tensor in enumerate(tensors(written)):
            # opened each time: pages that stay mapped would count as this process's memory
            file = np.memmap(
                self.folder / str(number),
                dtype=np.uint8,
                mode="r",
                shape=(self.count, tensor.nbytes),
            )
            found = torch.from_numpy(np.array(file[list(places)])).flatten()
            parts.append(found.view(tensor.dtype).reshape(len(places), *tensor.shape[1:]))
            del file
        split = len(tensors(self.like[0]))
        if self.targets is not None:
            return with_tensors(self.like[0], parts), self.targets[list(places)]
        return with_tensors(self.like[0], parts[:split]), with_tensors(self.like[1], parts[split:])


def _spool(batches: Iterator[Row], length: int, size: int) -> SpooledRows:
    """Write a stream to disk."""
    folder = make_scratch("stream")
    free = shutil.disk_usage(folder).free
    if size > free:
        folder.rmdir()
        raise InputError(
            f"A stream of {length} samples takes {size / 1e9:.1f} GB, and {folder.parent} has "
            f"{free / 1e9:.1f} GB left. Give a smaller `length`, more `memory`, or another TMPDIR."
        )
    like: Row | None = None
    shapes: list[Any] = []
    count = 0
    files: list[Any] = []
    boxes: list[Any] = []
    try:
        for inputs, targets in batches:
            held = isinstance(targets, Tensor) and is_boxes(targets)  # small, and of unlike sizes
            boxes += [targets] if held else []
            parts = [*tensors(inputs), *([] if held else tensors(targets))]
            found = [(tuple(part.shape[1:]), part.dtype) for part in parts]
            if like is None:
                shapes = found
                like = _rows_like(inputs), _rows_like(targets)
                files = [(folder / str(i)).open("wb") for i in range(len(parts))]
            elif found != shapes:
                raise InputError(
                    f"Samples of a stream that is kept on disk must be alike, found {shapes} and "
                    f"{found}. Pad or resize them in the data set or its `collate_fn`."
                )
            for file, part in zip(files, parts, strict=True):
                as_bytes(part).numpy().tofile(file)
            count += batch_size(targets)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        for file in files:
            file.close()
    assert like is not None
    rows = SpooledRows(folder, like, count, join_targets(boxes) if boxes else None)
    weakref.finalize(rows, shutil.rmtree, str(folder), ignore_errors=True)
    return rows


def _rows_like(value: Any) -> Any:
    first: Callable[[Tensor], Tensor] = lambda part: part[:1].clone()  # noqa: E731 - typed
    return map_tensors(first, value)

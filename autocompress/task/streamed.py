"""A split whose samples are read when they are needed, and kept as far as memory allows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from autocompress.errors import AutocompressError, InputError, explained
from autocompress.task.batches import TARGET_KEYS, Reader, join, join_targets
from autocompress.task.calling import own_place
from autocompress.task.memory import Memory
from autocompress.task.nested import batch_size, map_tensors, take, tensors
from autocompress.task.seeded import Seeded
from autocompress.task.split import Row, Split, add_samples, class_indices


class Rows(Protocol):
    """Where samples come from."""

    def __len__(self) -> int:
        """Samples."""

    def read(self, places: Sequence[int]) -> Row:
        """Samples at some places, in their order."""


class DatasetRows:
    """Samples of a data set with ``__len__`` and ``__getitem__``.

    What a sample draws at random (crops, flips, masked tokens) follows from its index alone, so
    that it is the same however often it is read, and in every process.

    Args:
        dataset: gives one sample at a time.
        collate: from a list of samples to a batch; where it draws, it is given one at a time.
        reader: takes the batch apart.
        order: which samples of the data set, in which order; ``None`` takes all.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        reader: Reader,
        order: Sequence[int] | None = None,
    ) -> None:
        self.dataset, self.collate, self.reader, self.order = dataset, collate, reader, order
        self._draws = False

    def __len__(self) -> int:
        return len(self.dataset) if self.order is None else len(self.order)

    def read(self, places: Sequence[int]) -> Row:
        """See ``Rows``."""
        order = self.order
        chosen = [int(i) for i in (places if order is None else [order[p] for p in places])]
        with Seeded() as draws:
            if not self._draws:
                row = self._row([self._sample(i) for i in chosen])
                self._draws = draws.drew(0)
                if not self._draws:  # as most do: seeding for each sample takes time
                    return row
            samples = []
            for index in chosen:
                draws.seed(index)
                samples.append(self._sample(index))
            draws.seed(0)
            row = self._row(samples)
            if not draws.drew(0):
                return row
            rows = []
            for index, sample in zip(chosen, samples, strict=True):
                draws.seed(index)
                rows.append(self._row([sample]))
        return _joined(rows)

    def _sample(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except AutocompressError:
            raise
        except Exception as error:  # a data set of anyone's raises whatever it stumbles on
            raise InputError(
                f"Sample {index} of {type(self.dataset).__name__} cannot be read: "
                f"{explained(error)}{own_place(error)}. Mend it, or leave it out "
                "(torch.utils.data.Subset)."
            ) from error

    def _row(self, samples: list[Any]) -> Row:
        return self.reader(self.collate(samples))


def check_complete(row: Row, wanted: int) -> None:
    """Refuse a batch of another number of samples than were asked for.

    Raises:
        InputError: what stands where in it is then unknown.
    """
    if batch_size(row[1]) != wanted:
        raise InputError(
            f"A `collate_fn` must give as many samples as it takes, but this one makes "
            f"{batch_size(row[1])} of {wanted}. Leave samples out before they are put together, "
            "for example by torch.utils.data.Subset."
        )


class CachedRows:
    """Rows that keep what they have read, until the budget is used up.

    Nothing is let go again: a split is read from one end to the other, again and again, and what
    was read last is then what is needed last.

    Args:
        rows: read from.
        memory: the budget, shared with others.
    """

    def __init__(self, rows: Rows, memory: Memory) -> None:
        self.rows, self.memory = rows, memory
        self.held: dict[int, Row] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: it reads for itself."""
        return {"rows": self.rows, "memory": Memory(self.memory.limit), "held": {}}

    def read(self, places: Sequence[int]) -> Row:
        """See ``Rows``."""
        missing = [place for place in dict.fromkeys(places) if place not in self.held]
        if not missing:
            return _joined([self.held[place] for place in places])
        read = self.rows.read(missing)
        check_complete(read, len(missing))
        size = sum(part.nbytes for part in (*tensors(read[0]), *tensors(read[1])))
        each = size // len(missing)
        fresh: dict[int, Row] = {}
        for i, place in enumerate(missing):
            row = (take(read[0], slice(i, i + 1)), take(read[1], slice(i, i + 1)))
            if self.memory.reserve(each):
                # a view would keep the whole batch in memory
                row = self.held[place] = (_copied(row[0]), _copied(row[1]))
            fresh[place] = row
        if missing == list(places):
            return read
        return _joined([fresh.get(place) or self.held[place] for place in places])


def _copied(value: Any) -> Any:
    return map_tensors(lambda part: part.clone(), value)


def _joined(rows: Sequence[Row]) -> Row:
    return join([row[0] for row in rows]), join_targets([row[1] for row in rows])


class FirstCheck:
    """Looks at targets once, when they are read for the first time.

    Args:
        check: of the targets of a batch; raises what is wrong.
        count: rows that there are.
    """

    def __init__(self, check: Callable[[Any], object], count: int) -> None:
        self.check, self.seen = check, torch.zeros(count, dtype=torch.bool)

    def __call__(self, places: Tensor, targets: Any) -> None:
        """Look at the targets of some rows, as far as they are new."""
        new = ~self.seen[places]
        if bool(new.any()):
            self.check(targets if bool(new.all()) else take(targets, new))
            self.seen[places] = True


class StreamedSplit(Split):
    """One split, read when it is needed.

    Args:
        rows: where samples come from.
        preprocess: from a batch of stored inputs to the model's inputs; ``None`` leaves them.
        index: places of the rows that belong to the split, in order; ``None`` takes all.
        labels: class indices of all rows, where they are known without reading them.
        check: looks at targets when they are read.
    """

    def __init__(
        self,
        rows: Rows,
        preprocess: Callable[[Any], Any] | None = None,
        *,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        check: FirstCheck | None = None,
    ) -> None:
        self.rows, self.preprocess, self.index = rows, preprocess, index
        self._labels, self._check = labels, check
        self._fingerprint: str | None = None
        self._targets: Any = None

    def __len__(self) -> int:
        return len(self.rows) if self.index is None else len(self.index)

    def __repr__(self) -> str:
        return f"StreamedSplit({len(self)} samples)"

    @property
    def device(self) -> torch.device:
        """Where samples are put together."""
        return torch.device("cpu")

    @property
    def labels(self) -> Tensor | None:
        """Class indices, where they are known without reading everything."""
        if self._labels is None:
            return None
        return self._labels if self.index is None else self._labels[self.index]

    @property
    def stored(self) -> Any:
        """Refused: nothing holds all of it.

        Raises:
            InputError: always; ``batches``, ``take`` and ``sample`` read a part.
        """
        raise InputError(
            "This split is streamed and never in memory as a whole: use `batches`, `take` or "
            "`sample`."
        )

    @property
    def targets(self) -> Any:
        """The targets of all samples: labels that are known, or read once and kept."""
        if self._targets is None:
            known = self.labels
            if known is not None:
                self._targets = known
            else:
                parts = [self.take(slice(i, i + 256))[1] for i in range(0, len(self), 256)]
                self._targets = join_targets(parts)
        return self._targets

    def take(self, index: Tensor | slice) -> tuple[Any, Any]:
        """Stored inputs and targets at some indices, read now or earlier; not preprocessed."""
        places = torch.arange(len(self))[index] if self.index is None else self.index[index]
        row = self.rows.read(places.tolist())
        if self._check is not None:
            self._check(places, row[1])
        return row

    def subset(self, index: Tensor) -> Split:
        """The samples at some indices; read when they are needed, and kept for all."""
        return self._like(index=index if self.index is None else self.index[index])

    def prepared_by(self, preprocess: Callable[[Any], Any]) -> Split:
        """The same samples with another way to the model's inputs."""
        return self._like(preprocess=preprocess)

    def checked_by(self, check: Callable[[Any], object]) -> Split:
        """The same samples, whose targets are looked at when they are read for the first time."""
        return self._like(check=FirstCheck(check, len(self.rows)))

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: it settles for itself what targets must be."""
        return {**self.__dict__, "_check": None}

    def _like(self, **changed: Any) -> Split:
        own = {"index": self.index, "labels": self._labels, "check": self._check}
        preprocess = changed.pop("preprocess", self.preprocess)
        return StreamedSplit(self.rows, preprocess, **{**own, **changed})

    @property
    def fingerprint(self) -> str:
        """The digest that the same samples have in memory; reads some hundred of them once."""
        if self._fingerprint is None:
            step = max(1, len(self) // 256)
            spread = torch.arange(0, len(self), step)
            digest = hashlib.sha256()
            add_samples(digest, len(self), [self.take(some) for some in spread.split(32)])
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def known_labels(rows: DatasetRows, first: Any) -> Tensor | None:
    """Class indices that a data set keeps beside its samples, so that nothing else is read.

    As ``targets`` or ``labels`` (torchvision's), or as a column (Hugging Face's).

    Args:
        rows: of the whole data set.
        first: the targets of its first sample, which the labels must begin with.
    """
    dataset = rows.dataset
    columns = [key for key in TARGET_KEYS if key in (getattr(dataset, "column_names", None) or ())]
    for found in (
        getattr(dataset, "targets", None),
        getattr(dataset, "labels", None),
        dataset[columns[0]] if columns else None,
    ):
        try:
            array = np.asarray(found)
        except ValueError:  # rows of unlike length
            continue
        if array.dtype.kind not in "iu" or array.shape != (len(dataset),):
            continue  # texts, dictionaries, numbers: no indices
        labels = class_indices(torch.from_numpy(array))
        if labels is not None and isinstance(first, Tensor) and labels[:1].equal(first.long()):
            return labels if rows.order is None else labels[torch.as_tensor(rows.order)]
    return None


def without_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same loader of a stream, read in this process.

    Streams that do not share themselves out give every sample once per worker, and the same sample
    would be trained on and judged by.
    """
    if type(loader) is not DataLoader or not loader.num_workers:
        return loader
    if not isinstance(loader.dataset, IterableDataset):
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
    )

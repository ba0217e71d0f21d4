"""One split of a data set: what every room may ask of it, and the one that is held in memory.

Samples stay as they are stored (``uint8`` images where possible); a split turns a batch of them
into what the model takes. ``streamed.StreamedSplit`` answers the same from a source that does not
fit into memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.machine.lock import after_timing
from autocompress.task.boxes import digest_boxes, is_boxes
from autocompress.task.memory import Memory
from autocompress.task.nested import batch_size, take, tensors
from autocompress.task.targets import is_one_hot

Inputs = Any
"""A batch as the model takes it: a tensor, a tuple (by position), a mapping (by keyword), nested;
the batch comes first in every tensor."""

Row = tuple[Any, Any]
"""Stored inputs and targets of a batch."""


@dataclass
class Split:
    """One split, held in memory.

    Args:
        stored: tensor ``(N, ...)`` of stored inputs (``uint8`` images ``(N, C, H, W)``, token
            ids, sequences), or a tuple or mapping of such tensors for several inputs.
        targets: tensor ``(N,)`` of class indices, or any structure of tensors with ``N`` first.
        preprocess: from a batch of stored inputs to the model's inputs; ``None`` leaves them.
    """

    stored: Any
    targets: Any
    preprocess: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        sizes = {len(t) for t in (*tensors(self.stored), *tensors(self.targets))}
        if len(sizes) != 1:
            raise InputError(f"A split needs as many targets as inputs, got sizes {sorted(sizes)}.")

    def __len__(self) -> int:
        return batch_size(self.targets)

    @property
    def device(self) -> torch.device:
        """Where the samples lie."""
        return tensors(self.targets)[0].device

    @property
    def labels(self) -> Tensor | None:
        """One whole number per sample ``(N,)``, where that is what targets say, and at hand."""
        return class_indices(self.targets)

    def take(self, index: Tensor | slice) -> tuple[Any, Any]:
        """Stored inputs and targets at some indices, not preprocessed."""
        return take(self.stored, index), take(self.targets, index)

    def subset(self, index: Tensor) -> Split:
        """The samples at some indices, in their order."""
        stored, targets = self.take(index)
        return Split(stored, targets, self.preprocess)

    def prepare(self, stored: Any) -> Inputs:
        """From stored inputs to the model's inputs."""
        return self.preprocess(stored) if self.preprocess is not None else stored

    def prepared_by(self, preprocess: Callable[[Any], Any]) -> Split:
        """The same samples with another way to the model's inputs."""
        return replace(self, preprocess=preprocess)

    def batches(
        self, size: int, *, generator: torch.Generator | None = None, limit: int | None = None
    ) -> Iterator[tuple[Inputs, Any]]:
        """Preprocessed batches, in order, or shuffled when a generator is given.

        Args:
            size: samples per batch; the last one may be smaller.
            generator: source of the shuffle; ``None`` keeps the stored order.
            limit: at most this many samples.
        """
        count = len(self) if limit is None else min(limit, len(self))
        order = (
            torch.randperm(len(self), generator=generator)[:count]
            if generator is not None
            else torch.arange(count)
        )
        for start in range(0, count, size):
            after_timing()  # who reads batches computes
            stored, targets = self.take(order[start : start + size])
            yield self.prepare(stored), targets

    def sample(self, count: int, seed: int = 0) -> Split:
        """A random subset without replacement, the same for the same seed; see ``places``."""
        return self.subset(self.places(count, seed))

    def places(self, count: int, seed: int = 0) -> Tensor:
        """Where the samples of such a subset are: ``(count,)`` indices, fewer if there are fewer.

        Every class that the labels know is in it, where it has room for all of them.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        return _with_rare(order, min(count, len(self)), self.labels)

    def inputs(self, count: int | None = None) -> Inputs:
        """The first ``count`` samples (all by default) as one preprocessed batch."""
        stored, _ = self.take(slice(0, count))
        return self.prepare(stored)

    @property
    def fingerprint(self) -> str:
        """Digest of sizes and a spread of the content."""
        digest = hashlib.sha256()
        step = max(1, len(self) // 256)
        add_samples(digest, len(self), [self.take(slice(None, None, step))])
        return digest.hexdigest()[:16]

    @classmethod
    def wrap(cls, source: Any, *, limit: int | None = None) -> Split:
        """Any ``Split``, ``(inputs, targets)`` pair, ``Dataset`` or ``DataLoader`` as a split.

        Raises:
            InputError: the source yields something that is not inputs and targets.
        """
        from autocompress.task.wrapping import wrap_split

        return wrap_split(source, limit=limit)


def add_samples(digest: Any, count: int, chunks: Sequence[Row]) -> None:
    """Add samples to the digest of a split.

    Args:
        digest: of hashlib.
        count: samples of the whole split.
        chunks: inputs and targets of some of them, batch by batch.
    """
    for place in (0, 1):
        for column in zip(*(tensors(chunk[place]) for chunk in chunks), strict=True):
            # rows that are no box depend on an image's neighbours
            boxes = place == 1 and all(map(is_boxes, column))
            shape = (count, 5) if boxes else (count, *column[0].shape[1:])
            digest.update(str((shape, str(column[0].dtype))).encode())
            for tensor in column:
                if boxes:
                    digest_boxes(digest, tensor)
                else:
                    digest.update(as_bytes(tensor).numpy().tobytes())


def as_bytes(tensor: Tensor) -> Tensor:
    """What a tensor holds, byte by byte ``(bytes,)``, of types too that numpy does not know."""
    return tensor.contiguous().flatten().view(torch.uint8)


def class_indices(targets: Any) -> Tensor | None:
    """Targets that say one whole number per sample, such as its class, as ``(N,)``.

    Read as tasks read them: of any type, with or without a last axis of 1, or one column per class.
    ``None`` for anything else.
    """
    if not isinstance(targets, Tensor) or not targets.numel() or targets.dim() not in (1, 2):
        return None
    if targets.dim() == 2 and targets.shape[1] > 1:
        return targets.argmax(1) if is_one_hot(targets) else None
    flat = targets.reshape(-1)
    whole = not flat.is_floating_point() or bool((flat.isfinite() & (flat == flat.round())).all())
    return flat.long() if whole else None


def _with_rare(order: Tensor, count: int, labels: Tensor | None) -> Tensor:
    """The first of an order, with the classes that are missing in place of the last surplus."""
    chosen = order[:count]
    if labels is None or count == len(order):
        return chosen
    labels = labels.cpu().unique(return_inverse=True)[1]
    known = torch.bincount(labels)
    left = torch.bincount(labels[chosen], minlength=len(known))
    missing = (left == 0).nonzero().flatten().tolist()
    if not missing or len(known) > count:
        return chosen
    rest, place = order[count:], count
    first = torch.full_like(known, len(rest))
    first.scatter_reduce_(0, labels[rest], torch.arange(len(rest)), "amin")
    # there may be a class for every other sample: plain numbers are faster one by one
    others, counts, own = rest[first[missing]].tolist(), left.tolist(), labels[chosen].tolist()
    found = chosen.tolist()
    for other in others:
        place -= 1
        while counts[own[place]] < 2:  # the only one of its class stays
            place -= 1
        counts[own[place]] -= 1
        found[place] = other
    return torch.tensor(found)


def counted(inputs: Any) -> int:
    """Samples of a batch of inputs, or of a split."""
    if isinstance(inputs, Split):
        return len(inputs)
    return batch_size(inputs) if tensors(inputs) else 0


def portions(inputs: Any, size: int) -> Iterator[Any]:
    """Prepared inputs, so many samples at a time.

    Args:
        inputs: a batch as the model takes it, or a split that gives them, streamed or not.
        size: samples of one portion; the last may be smaller.
    """
    if isinstance(inputs, Split):
        for part, _ in inputs.batches(size):
            yield part
        return
    for start in range(0, counted(inputs), size):
        yield take(inputs, slice(start, start + size))


def feed(split: Split, memory: Memory | None = None) -> Any:
    """All prepared inputs as one batch where they are small, and the split itself otherwise.

    Args:
        split: what ``portions`` is to give.
        memory: a batch of an eighth of it is small; by default as ``Memory.of`` says.
    """
    limit = (memory or Memory.of()).limit // 8
    size = sum(part.nbytes for part in tensors(split.inputs(1))) * len(split)
    return split.inputs() if size <= limit else split

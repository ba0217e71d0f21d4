"""The three splits of a data set, as every other room sees them.

Images stay in memory as they are stored (``uint8`` where possible); a split turns a batch of them
into what the model takes. Any user's ``Dataset`` or ``DataLoader`` is wrapped to the same surface.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autocompress.errors import InputError

if TYPE_CHECKING:
    from autocompress.task.task import Task

Inputs = Any
"""A tensor, or a tuple of tensors for models with several inputs; the batch comes first."""


@dataclass
class Split:
    """One split, held in memory.

    Args:
        stored: tensor ``(N, ...)`` of stored inputs (``uint8`` images ``(N, C, H, W)``, token
            ids, sequences), or a tuple of such tensors for several inputs.
        targets: tensor ``(N,)`` of class indices, or any tensor with ``N`` first.
        preprocess: from a batch of stored inputs to the model's inputs; ``None`` leaves them.
    """

    stored: Tensor | tuple[Tensor, ...]
    targets: Tensor
    preprocess: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        sizes = {len(t) for t in self._all_stored()} | {len(self.targets)}
        if len(sizes) != 1:
            raise InputError(f"A split needs as many targets as inputs, got sizes {sorted(sizes)}.")

    def _all_stored(self) -> tuple[Tensor, ...]:
        return self.stored if isinstance(self.stored, tuple) else (self.stored,)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor | slice) -> tuple[Any, Tensor]:
        """Stored inputs and targets at some indices, not preprocessed."""
        parts = tuple(t[index] for t in self._all_stored())
        return (parts if isinstance(self.stored, tuple) else parts[0]), self.targets[index]

    def prepare(self, stored: Any) -> Inputs:
        """From stored inputs to the model's inputs."""
        return self.preprocess(stored) if self.preprocess is not None else stored

    def batches(
        self, size: int, *, generator: torch.Generator | None = None, limit: int | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
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
            stored, targets = self.take(order[start : start + size])
            yield self.prepare(stored), targets

    def sample(self, count: int, seed: int = 0) -> Split:
        """A random subset without replacement, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(self), generator=generator)[: min(count, len(self))]
        stored, targets = self.take(index)
        return Split(stored, targets, self.preprocess)

    def inputs(self, count: int | None = None) -> Inputs:
        """The first ``count`` samples (all by default) as one preprocessed batch."""
        stored, _ = self.take(slice(0, count))
        return self.prepare(stored)

    @property
    def fingerprint(self) -> str:
        """Digest of sizes and a spread of the content."""
        digest = hashlib.sha256()
        step = max(1, len(self) // 256)
        for tensor in (*self._all_stored(), self.targets):
            digest.update(str((tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(tensor[::step].contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def wrap(cls, source: Any, *, limit: int | None = None) -> Split:
        """Hold any ``Split``, ``(inputs, targets)`` pair, ``Dataset`` or ``DataLoader`` in memory.

        Raises:
            InputError: the source yields something other than ``(input, target)`` pairs.
        """
        if isinstance(source, Split):
            return source
        if isinstance(source, tuple) and len(source) == 2:
            return cls(source[0], torch.as_tensor(source[1]))
        if not isinstance(source, DataLoader):
            if not isinstance(source, Dataset) and not hasattr(source, "__getitem__"):
                raise InputError(
                    "A split must be a Dataset or DataLoader of (input, target), got "
                    f"{type(source).__name__}."
                )
            source = DataLoader(source, batch_size=256)
        inputs: list[Any] = []
        targets: list[Tensor] = []
        for batch in source:
            if not isinstance(batch, list | tuple) or len(batch) < 2:
                raise InputError(f"A split must yield (input, target), got {type(batch).__name__}.")
            inputs.append(batch[0] if len(batch) == 2 else tuple(batch[:-1]))
            targets.append(torch.as_tensor(batch[-1]))
            if limit is not None and sum(len(t) for t in targets) >= limit:
                break
        if not inputs:
            raise InputError("A split is empty.")
        if isinstance(inputs[0], list | tuple):
            stored: Any = tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))
        else:
            stored = torch.cat(inputs)
        return cls(stored, torch.cat(targets))


@dataclass
class Data:
    """Three disjoint splits.

    Args:
        train: calibration and fine-tuning.
        val: what the search sees.
        test: used once, at the end.
        classes: number of classes, for the ready-made losses.
        augment: from a batch of stored inputs to an augmented one, or ``None``; ready-made
            augmentations live in ``recover.augment``.
        metric: from outputs and targets to a number where more is better; ``None`` is top-1, which
            one logit for targets 0 and 1 has too, and other single numbers do not.
        loss: from outputs and targets to a scalar; ``None`` is ``outputs.label_loss``.
        task: what the model is for; takes the place of ``metric`` and ``loss``. ``None`` is read
            from outputs and targets where that is certain (``settle``).
        name: for people and for the report.
    """

    train: Split
    val: Split
    test: Split
    classes: int | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    metric: Callable[[Tensor, Tensor], float] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    name: str = "data"
    extra: dict[str, Any] = field(default_factory=dict)
    task: Task | None = None

    @classmethod
    def wrap(cls, source: Any) -> Data:
        """Take anything with ``train``, ``val`` and ``test`` (attributes or keys)."""
        if isinstance(source, Data):
            return source
        parts: dict[str, Split] = {}
        for name in ("train", "val", "test"):
            part = source.get(name) if isinstance(source, dict) else getattr(source, name, None)
            if part is None:
                raise InputError(
                    f"The data need a `{name}` split (attribute or key); the three "
                    "splits keep the result honest."
                )
            parts[name] = Split.wrap(part)
        known: dict[str, Any] = {}
        for name in ("classes", "metric", "loss", "augment", "name", "task"):
            value = source.get(name) if isinstance(source, dict) else getattr(source, name, None)
            if value is not None:
                known[name] = value
        return cls(parts["train"], parts["val"], parts["test"], **known)

    @property
    def fingerprint(self) -> str:
        """Digest of all three splits."""
        parts = "".join(s.fingerprint for s in (self.train, self.val, self.test))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

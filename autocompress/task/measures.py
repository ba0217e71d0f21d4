"""The metrics behind the ready-made tasks: accumulators and functions of outputs and targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.targets import FOREGROUND

Read = Callable[[Any, Tensor], tuple[Tensor, Tensor, str]]
"""From outputs and targets to logits with the classes last, class indices, and a remark."""


class _OfPositions:
    """Accumulates what the logits at every position say.

    Args:
        read: logits and targets.
        ignore: target of positions that count nowhere.
    """

    def __init__(self, read: Read, ignore: int) -> None:
        self.read, self.ignore = read, ignore


class _OfMasks(_OfPositions):
    """Refuses masks of which nothing but background would count."""

    ignored = foreground = 0

    def look(self, masks: Tensor) -> Tensor:
        """Which pixels of a batch count."""
        kept = masks != self.ignore
        self.ignored += int((~kept).sum())
        self.foreground += int((kept & (masks != 0)).sum())
        return kept

    def refuse_background(self) -> None:
        """Raise for masks of 0 and 255, where 255 is taken for what is ignored."""
        if self.ignored and not self.foreground:
            raise InputError(
                f"{self.ignored} pixels have the target {self.ignore}, which is ignored, and all "
                f"others are background: any network would do. {FOREGROUND} Where another value is "
                "to be ignored: `args: {ignore: ...}`."
            )


class MeanIou(_OfMasks):
    """Intersection over union per class, averaged over the classes that occur."""

    table: Tensor | None = None

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count a batch."""
        logits, wanted, _ = self.read(outputs, targets)
        classes = logits.shape[-1]
        kept = self.look(wanted)
        pairs = wanted[kept] * classes + logits.argmax(-1)[kept]
        table = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        self.table = table if self.table is None else self.table + table

    def compute(self) -> float:
        """Of all batches."""
        self.refuse_background()
        table = torch.zeros(1, 1) if self.table is None else self.table.double()
        both = table.diagonal()
        either = table.sum(0) + table.sum(1) - both
        if not bool((either > 0).any()):
            raise InputError("The mean IoU is undefined: no position has a target.")
        return float((both / either)[either > 0].mean())


class BinaryIou(_OfMasks):
    """Intersection over union of what one logit and the targets call foreground."""

    both = either = 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count a batch."""
        logits, wanted, _ = self.read(outputs, targets)
        found, truth, kept = logits > 0, wanted == 1, self.look(wanted)
        self.both += int((found & truth).sum())
        self.either += int(((found | truth) & kept).sum())

    def compute(self) -> float:
        """Of all batches."""
        self.refuse_background()
        if not self.either:
            raise InputError("The IoU is undefined: no foreground is there and none was found.")
        return self.both / self.either


class ShareRight(_OfPositions):
    """Share of positions whose class is right."""

    right = count = 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count a batch."""
        logits, wanted, _ = self.read(outputs, targets)
        kept = wanted != self.ignore
        self.right += int((logits.argmax(-1) == wanted)[kept].sum())
        self.count += int(kept.sum())

    def compute(self) -> float:
        """Of all batches."""
        if not self.count:
            raise InputError("The share of right tokens is undefined: no token has a target.")
        return self.right / self.count


class Perplexity(_OfPositions):
    """Exponential of the mean negative log-likelihood of a token."""

    nats, count = 0.0, 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count a batch."""
        logits, wanted, _ = self.read(outputs, targets)
        nats = F.cross_entropy(
            logits.flatten(0, -2).float(),
            wanted.flatten(),
            ignore_index=self.ignore,
            reduction="sum",
        )
        self.nats += float(nats)
        self.count += int((wanted != self.ignore).sum())

    def compute(self) -> float:
        """Of all batches."""
        if not self.count:
            raise InputError("The perplexity is undefined: no token has a target.")
        return float(np.exp(self.nats / self.count))


class ErrorRate:
    """Edits that turn what was read into what was written, per symbol that was written.

    Args:
        read: from outputs and targets to pairs of sequences, the read and the written one.
    """

    def __init__(
        self, read: Callable[[Any, Tensor], Sequence[tuple[list[int], list[int]]]]
    ) -> None:
        self.read = read
        self.edits = self.symbols = 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count a batch."""
        for found, wanted in self.read(outputs, targets):
            self.edits += edit_distance(found, wanted)
            self.symbols += len(wanted)

    def compute(self) -> float:
        """Of all batches."""
        if not self.symbols:
            raise InputError("The error rate is undefined: every target is empty.")
        return self.edits / self.symbols


def edit_distance(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Fewest insertions, deletions and replacements between two sequences (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for i, symbol in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            step = before if symbol == other else before + 1
            before, row[j] = row[j], min(step, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def psnr(images: Tensor, wanted: Tensor, peak: float) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, ``(N,)``; 100 dB stands for equal ones."""
    error = (images - wanted).double().square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error.clamp(min=1e-10 * peak**2))


def recall_at(vectors: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether one of the ``k`` nearest others (by cosine) has the sample's own label, ``(N,)``.

    Samples whose label nobody else has are left out of the count: they cannot be found.
    """
    unit = F.normalize(vectors.float().flatten(1), dim=1)
    others = torch.bincount(torch.unique(labels, return_inverse=True)[1])
    findable = others[torch.unique(labels, return_inverse=True)[1]] > 1
    if not bool(findable.any()):
        raise InputError("Recall is undefined: no two samples have the same label.")
    right = []
    for start in range(0, len(unit), 1024):
        near = unit[start : start + 1024] @ unit.T
        rows = torch.arange(len(near))
        near[rows, rows + start] = -2.0  # not oneself
        found = labels[near.topk(min(k, len(unit) - 1)).indices]
        right.append((found == labels[start : start + 1024, None]).any(1))
    return torch.cat(right)[findable]


def equal_error_rate(vectors: Tensor, labels: Tensor) -> float:
    """Error rate of telling pairs of one label from others by cosine, where both errors are equal.

    Between two thresholds the rates are taken to run in straight lines.
    """
    unit = F.normalize(vectors.float().flatten(1), dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    scores = (unit @ unit.T)[first, second].double().numpy()
    same = (labels[first] == labels[second]).numpy()
    if same.all() or not same.any():
        raise InputError("The equal-error rate needs pairs of one label and pairs of two.")
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], same[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    missed = np.concatenate([[1.0], 1 - np.cumsum(same)[ends] / same.sum()])
    accepted = np.concatenate([[0.0], np.cumsum(~same)[ends] / (~same).sum()])
    gap = missed - accepted  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


@dataclass
class Detections:
    """Detections of one image: boxes ``(K, 4)`` as corners, scores and classes ``(K,)``."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


Decode = Callable[[Any], Sequence[Any]]
"""From outputs to detections of each image: ``(boxes, scores, classes)`` or a mapping of them."""


@dataclass
class MeanAveragePrecision:
    """Average precision per class and overlap, averaged, as COCO has it (101 recall points).

    Args:
        decode: see ``Decode``.
        overlaps: least intersection over union of a hit.
    """

    decode: Decode
    overlaps: tuple[float, ...]
    _scores: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    _hits: dict[int, list[list[bool]]] = field(default_factory=lambda: defaultdict(list))
    _wanted: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count a batch; targets ``(N, M, 5)`` of class and corners, class -1 where none is."""
        for found, wanted in zip(self.decode(outputs), targets, strict=True):
            self._image(_found(found), wanted[wanted[:, 0] >= 0])

    def _image(self, found: Detections, wanted: Tensor) -> None:
        for kind in {*wanted[:, 0].long().tolist(), *found.classes.long().tolist()}:
            truth = wanted[wanted[:, 0] == kind, 1:]
            self._wanted[kind] += len(truth)
            mine = torch.nonzero(found.classes == kind).flatten()
            order = mine[found.scores[mine].argsort(descending=True, stable=True)]
            overlap = box_iou(found.boxes[order], truth)
            hits = np.stack([_matched(overlap, least) for least in self.overlaps], 1)
            self._scores[kind] += found.scores[order].tolist()
            self._hits[kind] += hits.tolist()

    def compute(self) -> float:
        """Of all batches."""
        kinds = [kind for kind, count in self._wanted.items() if count]
        if not kinds:
            raise InputError("The mean average precision is undefined: no image has a box.")
        return float(np.mean([self._precision(kind) for kind in kinds]))

    def _precision(self, kind: int) -> float:
        scores = np.array(self._scores[kind])
        if not len(scores):
            return 0.0
        hits = np.array(self._hits[kind])[np.argsort(-scores, kind="stable")]
        true = hits.cumsum(0)
        recall = true / self._wanted[kind]
        precision = true / np.arange(1, len(hits) + 1)[:, None]
        # the best precision at this recall or a higher one
        precision = np.maximum.accumulate(precision[::-1], 0)[::-1]
        points = np.linspace(0, 1, 101)
        each = []
        for column in range(hits.shape[1]):
            place = np.searchsorted(recall[:, column], points, side="left")
            known = np.append(precision[:, column], 0.0)
            each.append(known[place].mean())
        return float(np.mean(each))


def _found(value: Any) -> Detections:
    if isinstance(value, Detections):
        return value
    if isinstance(value, dict):
        classes = value["classes"] if "classes" in value else value["labels"]
        return Detections(value["boxes"], value["scores"], classes)
    return Detections(*value)


def _matched(overlap: Tensor, least: float) -> NDArray[np.bool_]:
    """Each detection, the surest first, takes the free box that it overlaps most."""
    found, truth = overlap.shape
    free = torch.ones(truth, dtype=torch.bool)
    hits = np.zeros(found, bool)
    for i in range(found if truth else 0):
        near = torch.where(free, overlap[i], torch.tensor(-1.0))
        best = int(near.argmax())
        if float(near[best]) >= least:
            hits[i] = True
            free[best] = False
    return hits


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes ``(A, 4)`` and ``(B, 4)``, corners x1 y1 x2 y2."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (first, second)]
    return both / (areas[0][:, None] + areas[1][None] - both).clamp(min=1e-12)

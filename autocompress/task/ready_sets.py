"""Ready-made tasks whose outputs are read as sets or sequences: boxes, symbols, neighbours."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.results.metric import FRACTION
from autocompress.task.divergence import GaussianKL, SoftmaxKL
from autocompress.task.measures import (
    Decode,
    ErrorRate,
    MeanAveragePrecision,
    equal_error_rate,
    recall_at,
)
from autocompress.task.metrics import TaskMetric
from autocompress.task.pick import the_tensor
from autocompress.task.targets import refuse_nan
from autocompress.task.task import Loss, Task, ready_made

COCO_OVERLAPS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@ready_made
def detection(
    decode: Decode,
    loss: Loss | None = None,
    divergence: Any = None,
    overlaps: tuple[float, ...] = COCO_OVERLAPS,
) -> Task:
    """Boxes of classes, from outputs of any form; judged by the mean average precision (COCO).

    Targets are ``(N, M, 5)``: class, x1, y1, x2, y2 of up to ``M`` boxes, class -1 where none is.

    Args:
        decode: from a batch of outputs to ``(boxes (K, 4), scores (K,), classes (K,))`` of each
            image, thresholds and suppression included.
        loss: of the outputs, for training; ``None`` trains nothing.
        divergence: of the outputs; ``None`` is the normal distribution's over all of them.
        overlaps: least intersection over union of a hit; ``(0.5,)`` is that of PASCAL VOC.
    """

    def check(outputs: Any, targets: Tensor) -> list[str]:
        if targets.dim() != 3 or targets.shape[-1] != 5:
            raise InputError(
                "Targets of a detection are (N, boxes, 5): class, x1, y1, x2, y2, with class -1 "
                f"for boxes that are not there; got {tuple(targets.shape)}."
            )
        refuse_nan(targets)
        boxes = targets[targets[..., 0] >= 0][:, 1:]
        if bool((boxes[:, 2:] < boxes[:, :2]).any()):
            raise InputError(
                "Boxes are two corners with x2 >= x1 and y2 >= y1, not width and height; some are "
                "not."
            )
        return []

    return Task(
        TaskMetric("map", FRACTION, "maximize", lambda: MeanAveragePrecision(decode, overlaps)),
        loss,
        divergence if divergence is not None else GaussianKL(),
        name="detection",
        check=check,
    )


@ready_made
def ctc(
    blank: int = 0,
    padding: int = -1,
    output: str | None = None,
    loss: Loss | None = None,
) -> Task:
    """Symbols in a sequence of frames, logits ``(N, frames, symbols)``; judged by the error rate.

    Targets are ``(N, length)``, padded. A model that gives ``(frames, N, symbols)``, as torch's own
    loss takes it, is wrapped in a module that turns it.

    Args:
        blank: the symbol that stands for none.
        padding: target behind a sequence's end.
        output: path of the logits, where the model gives several tensors.
        loss: in place of the CTC loss.
    """

    def frames(outputs: Any, targets: Tensor) -> Tensor:
        found = the_tensor(outputs, output)
        if len(found) != len(targets):
            raise InputError(
                f"A CTC task needs logits (N, frames, symbols), got {tuple(found.shape)} for "
                f"{len(targets)} samples. Where frames come first, compress a module whose "
                "`forward` returns `self.model(x).transpose(0, 1)`."
            )
        return found

    def pairs(outputs: Any, targets: Tensor) -> list[tuple[list[int], list[int]]]:
        best = frames(outputs, targets).argmax(-1).tolist()
        wanted = [[s for s in row if s != padding] for row in targets.tolist()]
        return [(collapse(row, blank), own) for row, own in zip(best, wanted, strict=True)]

    def ctc_loss(outputs: Any, targets: Tensor) -> Tensor:
        logits = frames(outputs, targets)
        lengths = (targets != padding).sum(1)
        return F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            targets.clamp(min=0).long(),
            torch.full((len(logits),), logits.shape[1]),
            lengths.cpu(),
            blank=blank,
            zero_infinity=True,
        )

    return Task(
        TaskMetric("error_rate", FRACTION, "minimize", lambda: ErrorRate(pairs)),
        loss or ctc_loss,
        SoftmaxKL(output),
        name="sequence with CTC",
        check=lambda o, t: _check_ctc(the_tensor(o, output), t, blank, padding),
    )


def _check_ctc(logits: Tensor, targets: Tensor, blank: int, padding: int) -> list[str]:
    if logits.dim() != 3 or targets.dim() != 2:
        raise InputError(
            "A CTC task needs logits (N, frames, symbols) and targets (N, length), got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}."
        )
    refuse_nan(targets)
    own = targets[targets != padding]
    if len(own) and (int(own.min()) < 0 or int(own.max()) >= logits.shape[-1]):
        raise InputError(
            f"Targets go from {int(own.min())} to {int(own.max())}, but the outputs have "
            f"{logits.shape[-1]} symbols. Say which value pads: `args: {{padding: ...}}`."
        )
    if bool((own == blank).any()):
        raise InputError(
            f"Targets hold {blank}, which stands for no symbol. Say which one does: "
            "`args: {blank: ...}`."
        )
    return []


def collapse(symbols: list[int], blank: int) -> list[int]:
    """What a row of best symbols spells: repeats once, blanks left out."""
    before = [blank, *symbols]
    return [s for s, last in zip(symbols, before, strict=False) if s not in (last, blank)]


@ready_made
def embedding(
    metric: Literal["recall", "equal_error_rate"] = "recall",
    k: int = 1,
    output: str | None = None,
    loss: Loss | None = None,
    temperature: float = 0.1,
) -> Task:
    """Vectors that lie near each other where labels agree; judged by recall or equal-error rate.

    Args:
        metric: ``recall``: whether one of the ``k`` nearest others has the same label;
            ``equal_error_rate``: of telling pairs of one label from others by their cosine.
        k: of the recall.
        output: path of the vectors, where the model gives several tensors.
        loss: in place of the supervised contrastive loss.
        temperature: of that loss.

    References:
        Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2.
    """
    if metric not in ("recall", "equal_error_rate"):
        raise InputError(f"`metric` must be recall or equal_error_rate, got {metric!r}.")

    def check(outputs: Any, targets: Tensor) -> list[str]:
        refuse_nan(targets)
        if targets.numel() != len(targets):
            raise InputError(
                f"An embedding's targets are one label per sample, got {tuple(targets.shape)}."
            )
        return []

    def labelled(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        return the_tensor(outputs, output), targets.flatten()

    judged = (
        TaskMetric(
            f"recall_at_{k}",
            FRACTION,
            "maximize",
            lambda o, t: recall_at(*labelled(o, t), k).float().mean(),
            resamples=0,
        )
        if metric == "recall"
        else TaskMetric(
            metric,
            FRACTION,
            "minimize",
            lambda o, t: equal_error_rate(*labelled(o, t)),
            resamples=0,
        )
    )
    return Task(
        judged,
        loss or (lambda o, t: _contrastive(the_tensor(o, output), t, temperature)),
        GaussianKL(output, normalize=True),
        name="embedding",
        check=check,
    )


def _contrastive(vectors: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss of a batch."""
    unit = F.normalize(vectors.flatten(1), dim=1)
    near = unit @ unit.T / temperature
    oneself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    same = (targets.flatten()[:, None] == targets.flatten()[None]) & ~oneself
    log_share = near - near.masked_fill(oneself, -torch.inf).logsumexp(1, keepdim=True)
    paired = same.sum(1)
    each = (log_share * same).sum(1) / paired.clamp(min=1)
    return -each[paired > 0].sum() / (paired > 0).sum().clamp(min=1)

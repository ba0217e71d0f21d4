"""Ready-made tasks, by name; each may be given a loss, metrics or an output of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError, nearest
from autocompress.results.metric import FRACTION
from autocompress.task.batches import IGNORED
from autocompress.task.divergence import GaussianKL, SigmoidKL, SoftmaxKL
from autocompress.task.measures import Perplexity, ShareRight, psnr
from autocompress.task.metrics import TaskMetric
from autocompress.task.outputs import class_logits, label_loss
from autocompress.task.pick import the_tensor
from autocompress.task.ready_masks import binary_segmentation, segmentation
from autocompress.task.ready_sets import ctc, detection, embedding
from autocompress.task.targets import class_targets, flag_targets, number_targets
from autocompress.task.task import ClassScores, Loss, Task, ready_made

__all__ = [
    "READY",
    "binary",
    "binary_segmentation",
    "causal_language_model",
    "classification",
    "ctc",
    "detection",
    "embedding",
    "forecasting",
    "image_to_image",
    "masked_language_model",
    "multi_label",
    "ready",
    "regression",
    "segmentation",
    "token_classification",
]


@ready_made
def classification(output: str | None = None, loss: Loss | None = None) -> Task:
    """One class of several per sample (or per position, classes last); judged by accuracy.

    Args:
        output: path of the logits, where the model gives several tensors.
        loss: in place of the cross-entropy.
    """

    def read(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, str]:
        logits = class_logits(the_tensor(outputs, output), "classes")
        found, note = class_targets(targets, logits.shape[-1], tuple(logits.shape[1:-1]))
        return logits, found, note

    def right(outputs: Any, targets: Tensor) -> Tensor:
        logits, wanted, _ = read(outputs, targets)
        return logits.argmax(-1) == wanted

    def cross_entropy(outputs: Any, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        logits = class_logits(the_tensor(outputs, output), "classes")
        return label_loss(logits, _for_loss(logits, targets), "classes", smoothing)

    return Task(
        TaskMetric("accuracy", FRACTION, "maximize", right, per_sample=True),
        loss or cross_entropy,
        SoftmaxKL(output),
        name="classification",
        check=lambda outputs, targets: [read(outputs, targets)[2]],
        smooths=loss is None,
        class_scores=ClassScores("softmax", output),
    )


def _for_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Targets as the cross-entropy takes them; their values were checked before."""
    if targets.dim() == logits.dim() and targets.shape == logits.shape:
        return targets.to(logits.dtype)
    if targets.dim() == logits.dim() and targets.shape[-1] == 1:
        targets = targets.squeeze(-1)
    return targets.long()


@ready_made
def binary(output: str | None = None, loss: Loss | None = None) -> Task:
    """One logit per sample for yes or no; judged by accuracy."""

    def right(outputs: Any, targets: Tensor) -> Tensor:
        logit = the_tensor(outputs, output)
        found = (logit > 0) == (flag_targets(targets, logit)[0] == 1)
        return found.squeeze(-1) if found.dim() > 1 else found

    def cross_entropy(outputs: Any, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        return label_loss(the_tensor(outputs, output), targets, "binary", smoothing)

    return Task(
        TaskMetric("accuracy", FRACTION, "maximize", right, per_sample=True),
        loss or cross_entropy,
        SigmoidKL(output),
        name="binary classification",
        check=lambda outputs, targets: [flag_targets(targets, the_tensor(outputs, output))[1]],
        smooths=loss is None,
        class_scores=ClassScores("sigmoid", output),
    )


@ready_made
def multi_label(output: str | None = None, loss: Loss | None = None) -> Task:
    """Any number of labels per sample, one logit each; judged by the F1 score over all of them."""
    logits = lambda outputs: the_tensor(outputs, output)  # noqa: E731  (named for what it gives)

    def correct(outputs: Any, targets: Tensor) -> Tensor:
        found = logits(outputs)
        return ((found > 0) == (flag_targets(targets, found)[0] == 1)).float()

    def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
        found = logits(outputs)
        return F.binary_cross_entropy_with_logits(found, targets.reshape(found.shape).to(found))

    return Task(
        (
            TaskMetric("f1", FRACTION, "maximize", lambda: _MicroF1(logits)),
            TaskMetric("label_accuracy", FRACTION, "maximize", correct, per_sample=True),
        ),
        loss or cross_entropy,
        SigmoidKL(output),
        name="multi-label classification",
        check=lambda outputs, targets: [flag_targets(targets, logits(outputs))[1]],
    )


class _MicroF1:
    """F1 over all labels of all samples: 2 TP / (2 TP + FP + FN)."""

    def __init__(self, logits: Callable[[Any], Tensor]) -> None:
        self.logits = logits
        self.hits = self.wrong = 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        found = self.logits(outputs)
        wanted = flag_targets(targets, found)[0] == 1
        self.hits += int(((found > 0) & wanted).sum())
        self.wrong += int(((found > 0) != wanted).sum())

    def compute(self) -> float:
        if not self.hits + self.wrong:
            raise InputError("The F1 score is undefined: no label is there and none was found.")
        return 2 * self.hits / (2 * self.hits + self.wrong)


_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": torch.square,
    "mae": torch.abs,
}


@ready_made
def regression(
    metric: Literal["mse", "mae", "r2"] = "mse",
    unit: str = "",
    output: str | None = None,
    loss: Loss | None = None,
) -> Task:
    """Numbers; judged by the mean squared error.

    Args:
        metric: ``mse``, ``mae`` (mean absolute error) or ``r2`` (share of the variance explained).
        unit: of the metric, for people.
        output: path of the numbers, where the model gives several tensors.
        loss: in place of the squared (for ``mae``: absolute) error.
    """
    if metric not in ("mse", "mae", "r2"):
        raise InputError(f"`metric` must be mse, mae or r2, got {metric!r}.")

    def gaps(outputs: Any, targets: Tensor) -> Tensor:
        found = the_tensor(outputs, output)
        return found - number_targets(targets, found)[0]

    def r2(outputs: Any, targets: Tensor) -> float:
        left = gaps(outputs, targets).double()
        wanted = number_targets(targets, the_tensor(outputs, output))[0].double()
        return float(1 - left.square().mean() / wanted.var(0, correction=0).mean())

    def plain(outputs: Any, targets: Tensor) -> Tensor:
        return (torch.abs if metric == "mae" else torch.square)(gaps(outputs, targets)).mean()

    judged = (
        TaskMetric("r2", unit or FRACTION, "maximize", r2)
        if metric == "r2"
        else TaskMetric(
            metric, unit, "minimize", lambda o, t: _ERRORS[metric](gaps(o, t)), per_sample=True
        )
    )
    return Task(
        judged,
        loss or plain,
        GaussianKL(output),
        name="regression",
        check=lambda outputs, targets: [number_targets(targets, the_tensor(outputs, output))[1]],
    )


@ready_made
def forecasting(
    metric: Literal["mae", "mse"] = "mae",
    unit: str = "",
    output: str | None = None,
    loss: Loss | None = None,
) -> Task:
    """Future values ``(N, steps)`` or ``(N, steps, series)``; judged by the mean absolute error."""
    task = regression(metric, unit, output, loss)
    return Task(task.measured, task.loss, task.divergence, name="forecasting", check=task.check)


@ready_made
def token_classification(
    ignore: int = IGNORED, output: str | None = None, loss: Loss | None = None
) -> Task:
    """A class per token, logits ``(N, tokens, classes)``; judged by the share of tokens right.

    Args:
        ignore: target of tokens that count nowhere.
        output: path of the logits, where the model gives several tensors.
        loss: in place of the cross-entropy.
    """

    def read(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, str]:
        logits = the_tensor(outputs, output)
        found, note = class_targets(targets, logits.shape[-1], tuple(logits.shape[1:-1]), ignore)
        return logits, found, note

    def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
        logits = the_tensor(outputs, output)
        wanted = targets.reshape(-1).long()
        return F.cross_entropy(logits.flatten(0, -2), wanted, ignore_index=ignore)

    return Task(
        TaskMetric("token_accuracy", FRACTION, "maximize", lambda: ShareRight(read, ignore)),
        loss or cross_entropy,
        SoftmaxKL(output, ignore=ignore),
        name="token classification",
        check=lambda outputs, targets: [read(outputs, targets)[2]],
    )


@ready_made
def causal_language_model(
    ignore: int = IGNORED, output: str | None = None, loss: Loss | None = None, shift: bool = True
) -> Task:
    """The next token, logits ``(N, tokens, vocabulary)``; judged by perplexity.

    Args:
        ignore: target of tokens that count nowhere, such as padding.
        output: path of the logits, where the model gives several tensors.
        loss: in place of the cross-entropy.
        shift: targets are the inputs' own tokens, so that each belongs to the position before it,
            as in transformers; ``False`` where they are shifted already, or masked.
    """

    def read(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, str]:
        logits = the_tensor(outputs, output)
        found, note = class_targets(targets, logits.shape[-1], tuple(logits.shape[1:-1]), ignore)
        return (logits[:, :-1], found[:, 1:], note) if shift else (logits, found, note)

    def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
        logits, wanted = the_tensor(outputs, output), targets.long()
        if shift:
            logits, wanted = logits[:, :-1], wanted[:, 1:]
        return F.cross_entropy(logits.flatten(0, -2), wanted.flatten(), ignore_index=ignore)

    return Task(
        TaskMetric("perplexity", "", "minimize", lambda: Perplexity(read, ignore), margin="25%"),
        loss or cross_entropy,
        SoftmaxKL(output, ignore=ignore, shift=shift),
        name="causal language model" if shift else "language model",
        check=lambda outputs, targets: [read(outputs, targets)[2]],
    )


@ready_made
def masked_language_model(
    ignore: int = IGNORED, output: str | None = None, loss: Loss | None = None
) -> Task:
    """Tokens at masked places, all others ignored; judged by perplexity."""
    return causal_language_model(ignore, output, loss, shift=False)


@ready_made
def image_to_image(peak: float = 1.0, output: str | None = None, loss: Loss | None = None) -> Task:
    """Images from images; judged by the peak signal-to-noise ratio in dB, averaged over images.

    Args:
        peak: largest value of a pixel.
        output: path of the images, where the model gives several tensors.
        loss: in place of the squared error.
    """

    def each(outputs: Any, targets: Tensor) -> Tensor:
        found = the_tensor(outputs, output)
        return psnr(found, number_targets(targets, found)[0], peak)

    task = regression(output=output, loss=loss)
    return Task(
        TaskMetric("psnr", "dB", "maximize", each, per_sample=True, margin=3.0),
        task.loss,
        task.divergence,
        name="image to image",
        check=task.check,
    )


READY: Mapping[str, Callable[..., Task]] = {
    maker.__name__: maker
    for maker in (
        classification,
        binary,
        multi_label,
        regression,
        forecasting,
        segmentation,
        binary_segmentation,
        detection,
        token_classification,
        causal_language_model,
        masked_language_model,
        ctc,
        embedding,
        image_to_image,
    )
}
"""Ready-made tasks by the name that study files call them."""


def ready(name: str, **args: Any) -> Task:
    """A ready-made task by its name.

    Raises:
        InputError: no such task, or arguments that it does not take.
    """
    if name not in READY:
        raise InputError(
            f"There is no ready-made task {name!r}; {nearest(name, READY)} Known: "
            f"{', '.join(READY)}; or name a factory of your own, `package.module:function`."
        )
    try:
        return READY[name](**args)
    except TypeError as error:
        raise InputError(f"The task {name!r}: {error}.") from None

"""How far a compressed model's outputs are from the original's, in nats per sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from autocompress.errors import InputError
from autocompress.task.outputs import OutputKind, class_logits

Divergence = Callable[[Tensor, Tensor], Tensor]
"""From the original's and the compressed model's outputs to nats, one number per sample."""


def choose_divergence(kind: OutputKind, original: Tensor) -> Divergence:
    """The divergence that fits a model's outputs; see ``output_kind`` for which these are.

    Args:
        kind: of the outputs.
        original: the uncompressed model's outputs on many samples; their variance is the scale of
            numbers.

    Raises:
        InputError: numbers that do not vary have no scale.
    """
    if kind != "value":
        return partial(class_divergence, kind=kind)
    variance = float(original.double().var(correction=0))
    if not variance > 0:
        raise InputError(
            f"The uncompressed model gives {float(original.flatten()[0]):g} for all of "
            f"{len(original)} inputs, so that no change of it can be judged. Train it, or give "
            "other training inputs."
        )
    return partial(value_divergence, variance=variance)


def class_divergence(original: Tensor, compressed: Tensor, kind: OutputKind = "classes") -> Tensor:
    """KL(original || compressed) between the distributions over classes.

    Args:
        original, compressed: logits ``(N, ..., classes)``, or one logit per sample.
        kind: ``classes`` (softmax) or ``binary`` (sigmoid).
    """
    log_p = class_logits(original, kind).log_softmax(-1)
    log_q = class_logits(compressed, kind).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).flatten()


def value_divergence(original: Tensor, compressed: Tensor, variance: float) -> Tensor:
    """KL between two normal distributions of the same variance around both numbers.

    Args:
        original, compressed: one number per sample.
        variance: of the original's numbers over many samples.
    """
    return (original - compressed).flatten().square() / (2 * variance)

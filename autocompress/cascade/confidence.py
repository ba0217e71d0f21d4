"""How sure a classifier is of its answer, told from its logits. Needs numpy only: it is shipped."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError

Floats = NDArray[np.float64]
Confidence = Literal["margin", "entropy", "probability", "agreement"]
Scores = Literal["softmax", "sigmoid"]
"""What a task's logits are: one per class, or one for yes or no."""

OF_ONE: tuple[Confidence, ...] = ("margin", "entropy", "probability")
"""Those that one member tells alone."""


def as_logits(output: Any, scores: Scores) -> Floats:
    """A model's output as one logit per class, ``(N, classes)``.

    Args:
        output: ``(N, classes)``; for ``sigmoid`` ``(N,)`` or ``(N, 1)``, the logit of yes.
        scores: what the output holds.

    Raises:
        InputError: another shape.
    """
    found = np.asarray(output, dtype=np.float64)
    if scores == "sigmoid" and found.ndim in (1, 2) and found.size == len(found):
        yes = found.reshape(-1, 1)
        found = np.concatenate([np.zeros_like(yes), yes], axis=1)
    if found.ndim != 2 or found.shape[1] < 2:
        raise InputError(
            f"A cascade needs one answer per sample, logits of the shape (N, classes); got "
            f"{found.shape}."
        )
    return found


def check_finite(logits: Floats) -> None:
    """Refuse a member that nothing can be fitted to.

    Raises:
        InputError: a logit is infinite or no number.
    """
    if not np.isfinite(logits).all():
        raise InputError("A cascade needs finite logits; got some that are infinite or no number.")


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Softmax of ``logits / temperature``, ``(N, classes)``; NaN where no largest is finite."""
    with np.errstate(invalid="ignore"):  # an infinity less itself is no number, as it should be
        shifted = (logits - logits.max(axis=1, keepdims=True)) / temperature
    found = np.exp(shifted)
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def confidence(kind: Confidence, logits: Floats, temperature: float = 1.0) -> Floats:
    """How sure a member is of each answer, ``(N,)``; more is surer.

    NaN where the logits hold one: that reaches no threshold, so that a cascade hands the input on.

    Args:
        kind: ``margin``: the largest probability less the second; ``entropy``: that of the
            probabilities in nats, negated; ``probability``: the largest one at ``temperature``.
        logits: ``(N, classes)``.
        temperature: fitted; only ``probability`` depends on it.
    """
    if kind == "probability":
        return np.asarray(probabilities(logits, temperature).max(axis=1))
    found = probabilities(logits)
    if kind == "margin":
        two = np.partition(found, -2, axis=1)
        return np.asarray(two[:, -1] - two[:, -2])
    if kind == "entropy":
        logs = np.log(np.maximum(found, np.finfo(np.float64).tiny))
        return np.asarray((found * logs).sum(axis=1))
    raise InputError(f"One member alone tells {', '.join(OF_ONE)}; got {kind!r}.")


def agreement(answers: tuple[Any, Any], sure: tuple[Floats, Floats]) -> Floats:
    """How sure two members are of one answer, ``(N,)``: 0 where they give two.

    Args:
        answers: the class that each gives, ``(N,)``.
        sure: how probable each takes it to be.
    """
    both = np.minimum(*sure)  # NaN where either is: what no number is said of, nobody agrees on
    return np.where((answers[0] == answers[1]) | np.isnan(both), both, 0.0)

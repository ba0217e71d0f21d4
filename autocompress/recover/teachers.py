"""Teachers: frozen copies, how much each one counts, and their outputs kept for later epochs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.recover.device import Place
from autocompress.recover.score import score
from autocompress.task.data import Data

Weights = Sequence[float] | Literal["accuracy"] | None

_CACHE: WeakKeyDictionary[nn.Module, dict[Any, Tensor]] = WeakKeyDictionary()
_SCORES: WeakKeyDictionary[nn.Module, dict[str, float]] = WeakKeyDictionary()


def frozen(teacher: nn.Module, place: Place) -> nn.Module:
    """A copy on the device, in eval mode, that no gradient reaches."""
    return place.put_module(copy.deepcopy(teacher)).eval().requires_grad_(False)


def teacher_weights(
    teachers: Sequence[nn.Module], weights: Weights, data: Data, view: Any = None
) -> list[float]:
    """How much each teacher counts; they sum to 1.

    Args:
        teachers: at least one.
        weights: given, one per teacher; ``"accuracy"``: in proportion to validation accuracy
            above chance, so that a teacher who knows nothing is not heard (if none knows anything,
            equally); ``None``: equal.
        data: for ``"accuracy"``.
        view: from stored inputs to the teachers' inputs, where they differ from the student's.

    Raises:
        InputError: a wrong number of weights, a negative one, or none above zero.
    """
    if weights is None:
        return [1 / len(teachers)] * len(teachers)
    if isinstance(weights, str):
        if weights != "accuracy":
            raise InputError(f"`teacher_weights` must be numbers or 'accuracy', got {weights!r}.")
        chance = 1 / max(2, data.classes) if data.metric is None and data.classes else 0.0
        found = [max(0.0, _val_score(t, data, view) - chance) for t in teachers]
        if not any(found):
            return teacher_weights(teachers, None, data)
    else:
        found = [float(w) for w in weights]
    if len(found) != len(teachers) or min(found) < 0 or sum(found) <= 0:
        raise InputError(
            f"{len(teachers)} teachers need as many weights, none negative and not all zero; "
            f"got {found}."
        )
    return [w / sum(found) for w in found]


def _val_score(teacher: nn.Module, data: Data, view: Any) -> float:
    known = _SCORES.setdefault(teacher, {})
    key = data.val.fingerprint
    if key not in known:
        known[key] = score(teacher, data.val, data.metric, view=view)
    return known[key]


class TeacherCache:
    """Outputs of one teacher for fixed draws of augmentation, shared by all students.

    Several policies that are trained one after the other see the same batches in the same draws;
    the teacher is asked once. The outputs live as long as the teacher.

    Args:
        teacher: whose outputs are kept.
        key: everything that the batches depend on, draw and batch number aside.
    """

    def __init__(self, teacher: nn.Module, key: Any) -> None:
        self._kept = _CACHE.setdefault(teacher, {})
        self._key = key

    def get(self, batch: Any) -> Tensor | None:
        """The outputs for a batch, on the CPU, or ``None``."""
        return self._kept.get((self._key, batch))

    def put(self, batch: Any, outputs: Tensor) -> None:
        """Keep the outputs for a batch."""
        self._kept[(self._key, batch)] = outputs.detach().to("cpu", torch.float32)

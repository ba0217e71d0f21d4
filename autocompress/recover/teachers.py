"""Teachers: frozen copies, how much each one counts, and their outputs kept for later epochs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from autocompress.errors import InputError
from autocompress.recover.device import Place
from autocompress.recover.score import score
from autocompress.results.metric import ACCURACY
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.nested import map_tensors
from autocompress.task.settle import implied

Weights = Sequence[float] | Literal["quality", "accuracy"] | None

_CACHE: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()
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
        weights: given, one per teacher; ``"quality"``: in proportion to the quality on val, for
            accuracy above chance, so that a teacher who knows nothing is not heard (if none knows
            anything, equally), and for errors to their inverse; ``"accuracy"``: the same, by its
            old name; ``None``: equal.
        data: for ``"quality"``.
        view: from stored inputs to the teachers' inputs, where they differ from the model's.

    Raises:
        InputError: a wrong number of weights, a negative one, or none above zero.
    """
    if weights is None:
        return [1 / len(teachers)] * len(teachers)
    if isinstance(weights, str):
        if weights not in ("quality", "accuracy"):
            raise InputError(f"`teacher_weights` must be numbers or 'quality', got {weights!r}.")
        found = [_weight(t, data, view) for t in teachers]
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


def _weight(teacher: nn.Module, data: Data, view: Any) -> float:
    """How much a teacher knows, at least 0."""
    stored, _ = data.train.take(slice(0, 2))
    inputs = data.train.prepare(stored) if view is None else view(stored)
    with torch.inference_mode():
        task = implied(data, call(teacher.eval(), inputs))
    known = _SCORES.setdefault(teacher, {})
    key = f"{data.val.fingerprint}|{task.quality.name}"
    if key not in known:
        known[key] = score(teacher, data.val, task, view=view)
    if task.quality.goal == "minimize":
        return 1 / max(known[key], 1e-12)
    chance = 1 / max(2, data.classes) if task.quality == ACCURACY and data.classes else 0.0
    return max(0.0, known[key] - chance)


class TeacherCache:
    """Outputs of one teacher for fixed draws of augmentation, shared by all models that it teaches.

    Several policies that are trained one after the other see the same batches in the same draws;
    the teacher is asked once. The outputs live as long as the teacher.

    Args:
        teacher: whose outputs are kept.
        key: everything that the batches depend on, draw and batch number aside.
    """

    def __init__(self, teacher: nn.Module, key: Any) -> None:
        self._kept = _CACHE.setdefault(teacher, {})
        self._key = key

    def get(self, batch: Any) -> Any:
        """The outputs for a batch, on the CPU, or ``None``."""
        return self._kept.get((self._key, batch))

    def put(self, batch: Any, outputs: Any) -> None:
        """Keep the outputs for a batch."""
        self._kept[(self._key, batch)] = map_tensors(lambda t: t.detach().cpu(), outputs)

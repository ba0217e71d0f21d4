"""Knowledge distillation: a model learns from the labels and from one or several teachers.

The loss is ``(1 - weight) * label loss + weight * tau^2 * KL(teacher || model)`` with both
distributions softened by the temperature tau, the KL divergence summed over classes and averaged
over samples, plus ``feature_weight`` times a loss between intermediate features. The task's own
divergence takes the KL's place; of numbers it is their mean squared difference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.policy.policy import Distill
from autocompress.policy.recovery import DistillationConfig
from autocompress.recover.device import Place, in_float
from autocompress.recover.features import (
    FeatureHooks,
    attention_loss,
    find_taps,
    hint_loss,
    pair_taps,
    projection,
)
from autocompress.recover.teachers import TeacherCache, Weights, frozen, teacher_weights
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.divergence import Divergence, SoftmaxKL
from autocompress.task.nested import map_tensors, tensors
from autocompress.task.settle import implied

_log = logging.getLogger(__name__)
SAFE_TEMPERATURE = 2.0
LOW_BITS_TEMPERATURE = 1.0


@dataclass
class Distillation:
    """Teachers and how they are listened to.

    Args:
        teachers: never changed; in eval mode or not.
        config: temperature, share and features.
        weights: how much each teacher counts; see ``teachers.teacher_weights``.
        view: from (augmented) stored inputs to the teachers' inputs, where they see others of
            the same sample than the model; ``None`` takes ``data.extra["teacher_view"]`` if that
            is there, else the model's inputs.
        cached_draws: see ``DistillationConfig``.
    """

    teachers: Sequence[nn.Module]
    config: Distill = field(default_factory=Distill)
    weights: Weights = None
    view: Callable[[Any], Any] | None = None
    cached_draws: int = 0

    def __post_init__(self) -> None:
        if not self.teachers:
            raise InputError("Distillation needs at least one teacher.")

    @classmethod
    def of(
        cls,
        section: DistillationConfig,
        teachers: Sequence[nn.Module],
        asked: Distill | None = None,
    ) -> Distillation:
        """The distillation that a study and a policy ask for.

        Args:
            section: ``recovery.distillation`` of the study.
            teachers: already loaded.
            asked: what the policy says; fields that the section leaves alone are taken from it.
        """
        return cls(
            teachers,
            section.over(asked),
            weights=section.teacher_weights,
            cached_draws=section.cached_draws,
        )

    def attach(
        self, model: nn.Module, data: Data, place: Place, *, lowest_bits: int = 32, key: Any = ()
    ) -> Teaching:
        """Make everything ready to teach one model.

        Args:
            model: in training; tapped for features until ``Teaching.close``.
            data: for the task, teachers weighted by quality, and an example.
            place: device and precision of training.
            lowest_bits: of the model's weights, for the default temperature.
            key: everything that the order and augmentation of batches depends on.
        """
        view = self.view or data.extra.get("teacher_view")
        return Teaching(self, model, data, place, view, lowest_bits, key)


def safe_temperature(
    temperature: float | None, lowest_bits: int, default: float = SAFE_TEMPERATURE
) -> float:
    """The temperature to use; a hot one on low bits is taken as given, with a warning.

    Softened targets ask a network for small differences between its outputs, which a network of
    very few levels cannot express: at 3-bit weights 91.6 % became 80.0 % with temperature 5.
    """
    if temperature is None:
        return LOW_BITS_TEMPERATURE if lowest_bits <= 4 else default
    if lowest_bits <= 4 and temperature > LOW_BITS_TEMPERATURE:
        _log.warning(
            "Distillation at temperature %g on %d-bit weights can cost many points; use 1, or "
            "leave `temperature` out.",
            temperature,
            lowest_bits,
        )
    return temperature


def soft_loss(
    outputs: Any,
    teacher: Any,
    temperature: float,
    divergence: Divergence | None = None,
    targets: Any = None,
) -> Tensor:
    """The loss towards a teacher's outputs: ``tau^2 * KL(teacher || model)``, per sample.

    Args:
        outputs: the model's: logits ``(N, ..., classes)``, or what the divergence is about.
        teacher: the teacher's, of the same shapes.
        temperature: tau; numbers have none.
        divergence: of the task; ``None`` is that between classes.
        targets: for positions that are to be left out.

    Raises:
        InputError: other shapes, or one column that is said to be classes.
    """
    ours, theirs = ([tuple(t.shape) for t in tensors(both)] for both in (outputs, teacher))
    if ours != theirs:
        raise InputError(
            f"Teacher and model must give outputs of the same shape, got {_shapes(theirs)} "
            f"and {_shapes(ours)}. Use a teacher of the same classes."
        )
    return (divergence or SoftmaxKL()).taught(outputs, teacher, temperature, targets)


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


class Teaching:
    """One model's distillation under way; made by ``Distillation.attach``."""

    def __init__(
        self,
        distillation: Distillation,
        model: nn.Module,
        data: Data,
        place: Place,
        view: Callable[[Any], Any] | None,
        lowest_bits: int,
        key: Any,
    ) -> None:
        self.config = distillation.config
        self.view = view
        self.place = place
        self._data = data
        self.temperature = safe_temperature(self.config.temperature, lowest_bits)
        self.weights = teacher_weights(distillation.teachers, distillation.weights, data, view)
        self.teachers = [frozen(t, place) for t in distillation.teachers]
        self._divergence: Divergence | None = None
        self.projections = nn.ModuleList()
        self._hooks: list[tuple[FeatureHooks, FeatureHooks]] = []
        self._caches: list[TeacherCache] = []
        if self.config.features is not None:
            self._tap(model, data)
        elif distillation.cached_draws:
            kept = (key, place.bf16, place.device.type, view is None)
            self._caches = [TeacherCache(t, kept) for t in distillation.teachers]

    def _tap(self, model: nn.Module, data: Data) -> None:
        stored, _ = data.train.take(slice(0, 2))
        inputs = self.place.put(data.train.prepare(stored))
        seen = self.place.put(self.view(stored)) if self.view is not None else inputs
        training = model.training
        taps = find_taps(model.eval(), inputs)
        model.train(training)
        for teacher in self.teachers:
            pairs = pair_taps(taps, find_taps(teacher, seen))
            self._hooks.append(
                (
                    FeatureHooks(model, [m for m, _ in pairs]),
                    FeatureHooks(teacher, [t for _, t in pairs]),
                )
            )
            if self.config.features == "hint":
                self.projections.append(nn.ModuleList(projection(m, t) for m, t in pairs))
        self.projections.to(self.place.device)

    def loss(
        self,
        label_loss: Tensor,
        outputs: Any,
        inputs: Any,
        stored: Any,
        batch: Any = None,
        targets: Any = None,
    ) -> Tensor:
        """The whole loss of one batch.

        Args:
            label_loss: towards the labels.
            outputs: the model's, float32; its forward pass was the last one.
            inputs: what the model received.
            stored: the (augmented) stored inputs, for teachers who see something else.
            batch: names the batch for the teachers' cache.
            targets: of the batch, for positions without one.
        """
        total = (1 - self.config.weight) * label_loss
        if self._divergence is None:
            self._divergence = implied(self._data, outputs).compared
        for i, weight in enumerate(self.weights):
            if weight == 0.0:
                continue
            taught = self._ask(i, inputs, stored, batch)
            soft = soft_loss(outputs, taught, self.temperature, self._divergence, targets)
            total = total + weight * self.config.weight * soft
            if self._hooks:
                total = total + weight * self.config.feature_weight * self._feature_loss(i)
        return total

    def _ask(self, index: int, inputs: Any, stored: Any, batch: Any) -> Any:
        known = self._caches[index].get(batch) if self._caches else None
        if known is not None:
            return map_tensors(lambda t: t.to(self.place.device), known)
        seen = inputs if self.view is None else self.place.put(self.view(stored))
        with torch.no_grad(), self.place.autocast():
            found = in_float(call(self.teachers[index], seen))
        if self._caches:
            self._caches[index].put(batch, found)
        return found

    def _feature_loss(self, index: int) -> Tensor:
        of_model, of_teacher = (r.take() for r in self._hooks[index])
        if self.config.features == "attention":
            return attention_loss(of_model, of_teacher)
        projections = self.projections[index]
        assert isinstance(projections, nn.ModuleList)
        moved = [p(m) for p, m in zip(projections, of_model, strict=True)]
        return hint_loss(moved, of_teacher)

    def close(self) -> None:
        """Take the hooks off the model."""
        for pair in self._hooks:
            for hooks in pair:
                hooks.close()

"""The whole network under repair without labels, toward the original's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.descent import Batch, Descent, draws_of
from autocompress.build.held_out import finite_rows
from autocompress.model.weights import load_tensors, state_tensors
from autocompress.recover.device import Place, in_float
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.divergence import Divergence
from autocompress.task.nested import take, tensors

_NORM = nn.modules.batchnorm._BatchNorm

_MOMENTUM = 0.1
"""Statistics follow the weights at this rate, whatever a norm was trained with: they have the last
of a few hundred steps to do so."""

_BOLDER = 3.0
"""How much higher a learning rate may be with batch norms (Ioffe and Szegedy, ICML 2015, 3.3)."""


@dataclass
class WholeNetwork:
    """Trains all parameters of a network toward the original's outputs.

    Args:
        original: in eval mode, on ``place``.
        module: to be trained, in eval mode, on ``place``.
        data: training inputs, and their augmentation.
        places: which of them are seen.
        divergence: what is made small.
        temperature: softens the outputs that it compares, where they are distributions.
        descent: how steps are taken.
        place: where the networks are.
        room: bytes that the original's answers may take, which are kept.
    """

    original: nn.Module
    module: nn.Module
    data: Data
    places: Tensor
    divergence: Divergence
    temperature: float
    descent: Descent
    place: Place
    room: int
    _answers: dict[Batch, tuple[Any, Tensor | None]] = field(default_factory=dict)

    def train(self, deadline: float, tell: Callable[[float], None]) -> None:
        """Take the steps of ``network_lr`` within the time.

        Raises:
            NoGradient: nothing can be learned, for none comes back.
        """
        config = self.descent.config
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        lr = config.network_lr
        with self._normalizing() as norms:
            if lr == "auto":
                lr = config.lr / 2 * (_BOLDER if norms else 1)

            def loss(batch: Batch, index: Tensor) -> Tensor | None:
                return self._loss(batch, index, norms)

            self.descent(parameters, loss, len(self.places), config.steps, lr, deadline, tell)

    def _loss(self, batch: Batch, index: Tensor, norms: list[nn.Module]) -> Tensor | None:
        """Mean divergence of a batch, without the samples that the original has no answer to."""
        augment = self.data.augment if self.descent.config.augment else None
        stored, targets = self.data.train.take(self.places[index])
        if augment is not None:
            stored = augment(stored, draws_of(self.descent.seed, batch))
        inputs = self.place.put(self.data.train.prepare(stored))
        targets = self.place.move(targets)
        wanted, fine = self._wanted(batch, inputs, targets)
        if fine is not None:
            if not bool(fine.any()):
                return None
            inputs, targets = take(inputs, fine), take(targets, fine)
        with self.place.autocast():
            found = self._found(inputs, norms)
        return self.divergence.taught(in_float(found), in_float(wanted), self.temperature, targets)

    def _wanted(self, batch: Batch, inputs: Any, targets: Any) -> tuple[Any, Tensor | None]:
        """What the original answers, and to which samples if not to all; kept where there is room.

        Where an answer is no number, the others are those to the other samples alone.
        """
        if batch in self._answers:
            return self._answers[batch]
        with self.place.autocast(), torch.no_grad():
            wanted, fine = call(self.original, inputs), None
            if not all(bool(t.isfinite().all()) for t in tensors(wanted)):
                same = in_float(wanted)
                fine = finite_rows(self.divergence(same, same, targets))
                if bool(fine.all()):
                    fine = None
                elif bool(fine.any()):
                    wanted = call(self.original, take(inputs, fine))
        if self.room > 0:
            self._answers[batch] = wanted, fine
            self.room -= sum(t.nbytes for t in tensors(wanted))
        return wanted, fine

    def _found(self, inputs: Any, norms: list[nn.Module]) -> Any:
        """What the network answers; where a norm has no batch in this one, by its statistics."""
        try:
            return call(self.module, inputs)
        except ValueError:  # torch: a single value for each channel, as of an expert's one sample
            if not norms:
                raise
        with _eval(norms):
            return call(self.module, inputs)

    @contextmanager
    def _normalizing(self) -> Iterator[list[nn.Module]]:
        """Let batch norms normalize by the batch at hand, if asked to; gives those that do."""
        norms = [m for m in self.module.modules() if isinstance(m, _NORM) and m.track_running_stats]
        if self.descent.config.batch_norms == "kept" or not norms:
            yield []
            return
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.momentum = _MOMENTUM
                norm.train()
            if not self._has_batch():
                for norm in norms:
                    norm.eval()
            yield [norm for norm in norms if norm.training]
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()

    @torch.no_grad()
    def _has_batch(self) -> bool:
        """Whether the network answers at all while its batch norms have to normalize."""
        state = {n: t.detach().clone() for n, t in state_tensors(self.module).items()}
        train = self.data.train
        few, _ = train.take(self.places[: self.descent.config.batch_size])
        try:
            call(self.module, self.place.put(train.prepare(few)))
        except ValueError:  # torch: a single value for each channel, as of one sample by itself
            return False
        finally:
            load_tensors(self.module, state)
        return True


@contextmanager
def _eval(norms: list[nn.Module]) -> Iterator[None]:
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()

"""Steps of training without labels, and the best of the weights that they came by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import UnsupportedModel
from autocompress.machine.lock import after_timing
from autocompress.model.weights import load_tensors, state_tensors
from autocompress.policy.settings import RefineConfig

DRAWS = 4
"""Epochs that differ: after them batches and augmentations come again, with the same answers."""


class NoGradient(UnsupportedModel):
    """What is to be made small does not depend on what is to be trained."""


Batch = tuple[int, int]
"""Which epoch of those, and which batch of it."""

Loss = Callable[[Batch, Tensor], Tensor | None]
"""From a batch and the places of its samples to a scalar; ``None`` where they teach nothing."""


@dataclass
class Descent:
    """Adam, annealed by a cosine over the steps, or over the time if that is over sooner.

    Args:
        config: how many samples make a batch.
        seed: of the order.
        zeros: parameters of which what is zero stays zero, each with what may change.
    """

    config: RefineConfig
    seed: int
    zeros: Sequence[tuple[nn.Parameter, Tensor]] = ()

    def __call__(
        self,
        parameters: list[nn.Parameter],
        loss: Loss,
        count: int,
        steps: int,
        lr: float,
        deadline: float,
        tell: Callable[[float], None] = lambda done: None,
    ) -> None:
        """Take the steps; one whose gradient is not finite is left out.

        Args:
            parameters: to be trained.
            loss: to be made small.
            count: samples that batches are drawn from.
            steps: at most so many.
            lr: the highest learning rate.
            deadline: when to stop, of ``time.monotonic``.
            tell: told the share that is done.

        Raises:
            NoGradient: what is to be made small has none.
        """
        optimizer = torch.optim.Adam(parameters, lr=lr)
        begin = time.monotonic()
        with torch.enable_grad():
            for step, (batch, index) in enumerate(self._order(count, steps)):
                after_timing()
                spent = (time.monotonic() - begin) / max(1e-9, deadline - begin)
                done = max(step / steps, min(1.0, spent))
                if done >= 1:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 + math.cos(math.pi * done)) / 2
                optimizer.zero_grad(set_to_none=True)
                found = loss(batch, index)
                if found is not None:
                    self._step(optimizer, parameters, found)
                tell(done)

    def _step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor
    ) -> None:
        if not loss.requires_grad:
            raise NoGradient(
                "no gradient comes back through the forward (torch.no_grad, inference_mode or "
                "detach is in the way)"
            )
        loss.backward()
        if not bool(nn.utils.clip_grad_norm_(parameters, 5.0).isfinite()):
            return
        optimizer.step()
        with torch.no_grad():
            for parameter, kept in self.zeros:
                parameter.mul_(kept)

    def _order(self, count: int, steps: int) -> Iterator[tuple[Batch, Tensor]]:
        """Indices of so many batches, epoch after epoch; they come again after a few epochs."""
        size = min(self.config.batch_size, count)
        for epoch in range(steps if count else 0):
            generator = torch.Generator().manual_seed(self.seed + epoch % DRAWS)
            for number in range(count // size):
                if epoch * (count // size) + number >= steps:
                    return
                if number == 0:
                    mixed = torch.randperm(count, generator=generator)
                yield (epoch % DRAWS, number), mixed[number * size : (number + 1) * size]


def draws_of(seed: int, batch: Batch) -> torch.Generator:
    """Random numbers of its own for each batch, the same on every machine."""
    epoch, number = batch
    return torch.Generator().manual_seed((seed * DRAWS + epoch) * 1_000_003 + number)


class Best:
    """The best weights so far, by a distance.

    Attributes:
        improved: whether any were nearer than those that it began with.
    """

    def __init__(self, distance: Callable[[nn.Module], float], module: nn.Module) -> None:
        self.distance = distance
        self.value = math.inf
        self.state: dict[str, Any] = {}
        self.offer(module)
        self.improved = False

    def offer(self, module: nn.Module) -> float:
        """Remember the module's weights if they are nearer than all before; how far they are."""
        found = self.distance(module)
        if found < self.value or not self.state:
            self.value, self.improved = found, True
            self.state = {n: t.detach().clone() for n, t in state_tensors(module).items()}
        return found

    def restored(self, module: nn.Module) -> nn.Module:
        """The module with the best weights."""
        load_tensors(module, self.state)
        return module

"""Which of several repaired networks is nearest to the original, on inputs that repaired none."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.policy.recovery import Schedule
from autocompress.recover.device import AnyOrder, Place, in_float
from autocompress.task.calling import call
from autocompress.task.memory import Memory
from autocompress.task.nested import concat, map_tensors, tensors
from autocompress.task.split import Split
from autocompress.task.task import Task

CHUNK = 128
_FEWEST = 8
"""Inputs that a divergence is told from at least."""


def as_many_as_fit(model: nn.Module, inputs: Split, wanted: int, memory: Memory | None) -> int:
    """How many inputs networks are compared on: as far as the outputs of three fit into memory.

    Args:
        model: uncompressed.
        inputs: at least one.
        wanted: at most so many.
        memory: what may be used; by default the machine's share.
    """
    with torch.inference_mode():
        two = tensors(call(model, inputs.inputs(2)))
    each = sum(4 * part.numel() for part in two) // 2
    return min(wanted, max(_FEWEST, (memory or Memory.of()).limit // max(1, 3 * each)))


def finite_rows(each: Tensor) -> Tensor:
    """Which samples have nothing but numbers ``(N,)``, of one number or several for each."""
    return each.isfinite().reshape(len(each), -1).all(1)


class HeldOutDivergence:
    """Distance of networks from the original.

    Args:
        original: uncompressed, in eval mode, on ``place``.
        inputs: what they are compared on; of targets, where a position has none.
        task: whose divergence it is.
        place: where the networks are.

    Attributes:
        count: inputs that count: those to which the original answers with numbers.
    """

    def __init__(
        self, original: nn.Module, inputs: Split, task: Task, place: Place | None = None
    ) -> None:
        self._inputs, self._place = inputs, place or Place.of(Schedule(device="cpu"))
        self._wanted = self._outputs(original)
        self.divergence = task.compared.fitted(self._wanted)
        _, self._targets = inputs.take(slice(None))
        same = self.divergence(self._wanted, self._wanted, self._targets)
        self._fine = finite_rows(same)
        self.count = int(self._fine.sum())

    def __call__(self, module: nn.Module) -> float:
        """Mean divergence of a network, infinite where it has none; its mode is its owner's."""
        each = self.divergence(self._wanted, self._outputs(module), self._targets)
        found = each[self._fine].mean()
        return math.inf if math.isnan(found) else float(found)

    def _outputs(self, module: nn.Module) -> Any:
        with torch.no_grad(), AnyOrder():
            parts = [
                in_float(call(module, self._place.put(inputs)))
                for inputs, _ in self._inputs.batches(CHUNK)
            ]
        return map_tensors(Tensor.cpu, concat(parts))

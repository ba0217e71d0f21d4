"""Which of several repaired networks is nearest to the original, on inputs that repaired none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autocompress.policy.recovery import Schedule
from autocompress.recover.device import Place, in_float
from autocompress.task.calling import call
from autocompress.task.nested import concat, map_tensors
from autocompress.task.split import Split
from autocompress.task.task import Task

CHUNK = 128


class Judge:
    """Distance of networks from the original.

    Args:
        original: uncompressed, in eval mode, on ``place``.
        inputs: what they are compared on; of targets, where a position has none.
        task: whose divergence it is.
        place: where the networks are.
    """

    def __init__(
        self, original: nn.Module, inputs: Split, task: Task, place: Place | None = None
    ) -> None:
        self._inputs, self._place = inputs, place or Place.of(Schedule(device="cpu"))
        self._wanted = self._outputs(original)
        self.divergence = task.compared.fitted(self._wanted)
        _, self._targets = inputs.take(slice(None))

    def __call__(self, module: nn.Module) -> float:
        """Mean divergence of a network; its mode is its owner's."""
        return float(self.divergence(self._wanted, self._outputs(module), self._targets).mean())

    def _outputs(self, module: nn.Module) -> Any:
        with torch.no_grad():
            parts = [
                in_float(call(module, self._place.put(inputs)))
                for inputs, _ in self._inputs.batches(CHUNK)
            ]
        return map_tensors(Tensor.cpu, concat(parts))

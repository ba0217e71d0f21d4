"""A quick look at a policy: how far its simulated outputs are from the uncompressed model's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from autocompress.build.held_out import as_many_as_fit
from autocompress.build.pipeline import Pipeline
from autocompress.machine.lock import after_timing
from autocompress.policy.policy import Policy
from autocompress.policy.recovery import Schedule
from autocompress.recover.device import Place, in_float
from autocompress.results.screened import Screened
from autocompress.task.calling import call
from autocompress.task.data import Split
from autocompress.task.divergence import Divergence
from autocompress.task.nested import concat, take


@dataclass
class Screening:
    """Divergence of policies on training inputs; nothing is exported, no validation sample is seen.

    Args:
        pipeline: builds the compressed models.
        images: how many training inputs it can use at most.
    """

    pipeline: Pipeline
    images: int

    def __call__(self, policy: Policy, images: int) -> Screened:
        """Mean divergence in nats from the uncompressed outputs, on the first ``images``."""
        count = min(images, len(self._inputs))
        after_timing()
        with torch.inference_mode():
            outputs = self._outputs(self.pipeline.rough(policy), count)
            reference = take(self._reference, slice(0, count))
            each = self._divergence(reference, outputs, self._targets(count))
        spread = float(each.std() / max(1, count) ** 0.5) if count > 1 else 0.0
        return Screened(float(each.mean()), spread, count)

    @property
    def depends_on(self) -> dict[str, Any]:
        """What a divergence depends on beside the policy; for the file that keeps divergences."""
        settings = self.pipeline.settings.screening_depends_on
        found = {**self.pipeline.identity, "settings": settings, "inputs": self.images}
        # files that say nothing of it hold divergences between classes
        name = self.pipeline.task.compared.name
        return found if name == "classes" else {**found, "outputs": name}

    @cached_property
    def _inputs(self) -> Split:
        """Training inputs other than those that calibrate (up to chance).

        As many as asked, as far as the outputs of three networks fit into the data's memory.
        """
        data = self.pipeline.data
        train = data.train
        count = as_many_as_fit(self.pipeline.model, train, self.images, data.memory)
        return train.sample(count, self.pipeline.settings.seed + 1)

    @cached_property
    def _reference(self) -> Any:
        """Outputs of the uncompressed model on all inputs."""
        return self._outputs(self.pipeline.model, len(self._inputs))

    @cached_property
    def _divergence(self) -> Divergence:
        return self.pipeline.task.compared.fitted(self._reference)

    def _targets(self, count: int) -> Any:
        """Of the inputs, for positions without one; what they are is not looked at."""
        return self._inputs.take(slice(0, count))[1]

    def _outputs(self, module: nn.Module, count: int) -> Any:
        """``(count, ...)`` of a module on the first inputs, in float32.

        In bfloat16 where the processor has instructions for it: half the time, while divergences
        worth telling apart move by some thousandths and the noise stays under 1e-4 nats.
        """
        place = Place.of(Schedule(device="cpu"))
        with torch.inference_mode(), place.autocast():
            parts = [call(module, self._inputs.prepare(part)) for part in self._chunks(count)]
        return in_float(concat(parts))

    def _chunks(self, count: int, size: int = 256) -> Iterator[Any]:
        even = math.ceil(count / math.ceil(count / size))  # no last one of a single image
        for i in range(0, count, even):
            yield self._inputs.take(slice(i, min(i + even, count)))[0]

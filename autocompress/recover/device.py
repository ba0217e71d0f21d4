"""Where training runs and in which precision.

The choice is read from the machine, not timed: a timed choice could differ from run to run, and
then the same seed would not give the same model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TargetUnavailable
from autocompress.policy.recovery import Schedule
from autocompress.task.nested import map_tensors


@dataclass(frozen=True)
class Place:
    """A device and a precision."""

    device: torch.device
    bf16: bool

    @classmethod
    def of(cls, schedule: Schedule) -> Place:
        """What the schedule asks for, on this machine.

        Raises:
            TargetUnavailable: a device that is not here.
        """
        name = schedule.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise TargetUnavailable(f"`device` {name!r} is not a torch device: {error}") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise TargetUnavailable(
                f"The schedule asks for device {name!r}, but this machine has no CUDA device. "
                "Use `device: auto`."
            )
        return cls(device, schedule.precision == "bf16" or _auto_bf16(schedule, device))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for a forward pass."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def put_module(self, module: nn.Module) -> nn.Module:
        """Move a module, in place, with convolutions in channels-last order."""
        module.to(self.device)
        for parameter in module.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return module

    @staticmethod
    def back(module: nn.Module) -> nn.Module:
        """Move a module to the CPU, in place, in torch's usual order."""
        module.cpu()
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()
        return module

    def put(self, inputs: Any) -> Any:
        """Move every tensor of a structure; images become channels-last."""
        return map_tensors(self._put, inputs)

    def move(self, value: Any) -> Any:
        """Move every tensor of a structure, in the order in which it lies in memory."""
        return map_tensors(lambda part: part.to(self.device, non_blocking=True), value)

    def _put(self, part: Tensor) -> Tensor:
        part = part.to(self.device, non_blocking=True)
        if part.dim() == 4 and part.is_floating_point():
            return part.contiguous(memory_format=torch.channels_last)
        return part


def in_float(outputs: Any) -> Any:
    """Outputs with their numbers in float32, whatever they were computed in."""
    return map_tensors(lambda t: t.float() if t.is_floating_point() else t, outputs)


def _auto_bf16(schedule: Schedule, device: torch.device) -> bool:
    if schedule.precision != "auto":
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(has() or amx())

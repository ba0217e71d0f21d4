"""Where training runs and in which precision.

The choice is read from the machine, not timed: a timed choice could differ from run to run, and
then the same seed would not give the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The context for a forward pass: its precision, and views of values in any order."""
        with AnyOrder(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            yield

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


class AnyOrder(TorchFunctionMode):
    """Lets ``view`` take values that lie channels-last, as models have it for the usual order."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any call of torch."""
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if func not in (Tensor.view, Tensor.view_as) or args[0].is_contiguous():
                raise
        return func(args[0].contiguous(), *args[1:], **(kwargs or {}))


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

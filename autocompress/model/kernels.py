"""One layer as a runtime sees it: its shape and the arithmetic that its policy asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isqrt, prod
from typing import Literal

from autocompress.model.part import Part
from autocompress.policy.policy import LayerPolicy
from autocompress.policy.registry import techniques

KernelPrecision = Literal["fp32", "int8", "int8_dynamic", "fp16"]


@dataclass(frozen=True)
class Kernel:
    """One layer as the runtime sees it.

    Args:
        kind: ``conv`` or ``linear``.
        in_channels, out_channels: of the weight, groups included.
        kernel_size, stride: of a convolution; empty for a linear layer.
        groups: of a convolution.
        size: spatial size of a convolution's output; rows of a linear layer's input.
        precision: of its arithmetic.
    """

    kind: str
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    size: tuple[int, ...] = (1,)
    precision: KernelPrecision = "fp32"

    @cached_property
    def key(self) -> str:
        """A text that names the shape, for tables."""
        return f"{self.template}:{self.in_channels}>{self.out_channels}"

    @property
    def template(self) -> str:
        """The key without the channel counts; groups count as depthwise or by their number."""
        groups = "dw" if self.depthwise else str(self.groups)
        parts = [self.kind, self.kernel_size, self.stride, groups, self.size, self.precision]
        return ":".join("x".join(map(str, p)) if isinstance(p, tuple) else str(p) for p in parts)

    @property
    def depthwise(self) -> bool:
        """Whether every channel has its own filter."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def macs(self) -> int:
        """Multiply-adds for one sample."""
        return self.weights * prod(self.size)

    @property
    def weights(self) -> int:
        """Values of its weight."""
        return self.in_channels * self.out_channels * prod(self.kernel_size) // self.groups

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of its weight."""
        return self.weights * {"fp32": 4, "fp16": 2}.get(self.precision, 1)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of its input without the batch (a linear layer: rows, features)."""
        if self.kind == "linear":
            return (*self.size, self.in_channels)
        spatial = tuple(n * s for n, s in zip(self.size, self.stride, strict=True))
        return (self.in_channels, *spatial)


def kernel_precision(policy: LayerPolicy) -> KernelPrecision:
    """The arithmetic that a layer's policy asks for."""
    asked = (t.arithmetic(policy) for t in techniques() if t.active(policy))
    return next((precision for precision in asked if precision is not None), "fp32")


def part_kernel(part: Part, precision: KernelPrecision) -> Kernel | None:
    """What a layer, or one of its factors, runs as; ``None`` for kinds without a kernel."""
    if part.kind == "linear":
        return Kernel(
            "linear", part.inputs, part.outputs, size=(part.positions,), precision=precision
        )
    if part.kind != "conv":
        return None
    return Kernel(
        "conv",
        part.inputs,
        part.outputs,
        part.kernel_size,
        part.stride,
        part.groups,
        _spatial(part.positions, len(part.kernel_size)),
        precision,
    )


def _spatial(positions: int, dims: int) -> tuple[int, ...]:
    """A square (or cube) of so many positions; a strip where there is none."""
    if dims == 2 and isqrt(positions) ** 2 == positions:
        return (isqrt(positions),) * 2
    return (*(1 for _ in range(dims - 1)), positions)

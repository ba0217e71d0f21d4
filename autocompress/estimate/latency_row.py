"""The quantities that a latency is a sum of, and how those of one model are summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.model.kernels import Kernel, KernelPrecision

#: what a latency is a sum of, in the order of ``Row.features``, and of which kind each of them is
FEATURES = {
    "float_ms": "time",
    "int8_ms": "time",
    "dynamic_ms": "time",
    "half_ms": "time",
    "float_kernels": "node",
    "int8_kernels": "node",
    "float_outputs": "value",
    "int8_outputs": "value",
    "to_int8": "node",
    "to_int8_values": "change",
    "to_int8_far": "change",
    "to_float": "node",
    "to_float_values": "change",
    "to_float_far": "change",
    "float_adds": "value",
    "int8_adds": "value",
    "stored_int_weights": "value",
    "far_weights": "far",
    "other_macs": "macs",
}
#: which of them a kernel's time, count and outputs go to
_PLACES: dict[KernelPrecision, tuple[str, str, str]] = {
    "fp32": ("float_ms", "float_kernels", "float_outputs"),
    "int8": ("int8_ms", "int8_kernels", "int8_outputs"),
    "int8_dynamic": ("dynamic_ms", "float_kernels", "float_outputs"),
    "fp16": ("half_ms", "float_kernels", "float_outputs"),
}
#: values of one activation that a core's own cache still holds, 1 MiB as floats; what lies beyond
#: is read and written several times as slowly
_NEAR = 1 << 18
#: a network's weights take up to about twice the table's footprint, a power of two: its times
#: hold so far
_NEAR_FOOTPRINTS = 2


@dataclass(frozen=True, slots=True)
class LayerKernels:
    """What one layer runs as.

    Args:
        precision: of its arithmetic.
        kernels: one, or one for each of its factors; none for kinds that are not timed alone.
        outputs: values that all of them put out per sample.
        volume: values that the last of them puts out.
        stored: values of weights that are turned into floats at every inference.
        macs: multiply-adds of a layer without kernels.
    """

    precision: KernelPrecision
    kernels: tuple[Kernel, ...]
    outputs: int
    volume: int
    stored: int
    macs: int


@dataclass(frozen=True, slots=True)
class Row:
    """What the latency of one model is made of.

    Args:
        features: the quantities named in ``FEATURES``; values count in thousands, weights beyond
            the caches (``far_weights``) in MiB.
        kernels: key of each kernel, and the milliseconds that all of its uses sum up to.
    """

    features: NDArray[np.float64]
    kernels: Mapping[str, float]

    def minus(self, other: Row) -> Row:
        """The difference of two rows."""
        names = {**self.kernels, **other.kernels}
        left = {n: self.kernels.get(n, 0.0) - other.kernels.get(n, 0.0) for n in names}
        return Row(self.features - other.features, left)


@dataclass(slots=True)
class RowSum:
    """A row as it is summed up, or as something is taken off it.

    Args:
        image: values of the network's input.
        total: by the names of ``FEATURES``.
        times: as in ``Row.kernels``.
        weight: bytes of all weights.
        last: place of the last layer that is there; -1 where none is.
    """

    image: int
    total: dict[str, float]
    times: dict[str, float]
    weight: int
    last: int = -1

    def add_layers(
        self, layers: Iterable[LayerKernels], table_ms: Callable[[Kernel], float], sign: int = 1
    ) -> None:
        """Times, counts and sizes of layers."""
        total = self.total
        for layer in layers:
            time, count, outputs = _PLACES[layer.precision]
            for kernel in layer.kernels:
                ms = sign * table_ms(kernel)
                self.times[kernel.key] = self.times.get(kernel.key, 0.0) + ms
                total[time] += ms
                self.weight += sign * kernel.weight_bytes
            total[count] += sign * len(layer.kernels)
            total[outputs] += sign * layer.outputs * 1e-3
            total["stored_int_weights"] += sign * layer.stored * 1e-3
            total["other_macs"] += sign * layer.macs * 1e-6

    def add_change(self, change: str, values: int, sign: int = 1) -> None:
        """A change of so many values, ``to_int8`` or ``to_float``."""
        self.total[change] += sign
        self.total[f"{change}_values"] += sign * values * 1e-3
        self.total[f"{change}_far"] += sign * max(0, values - _NEAR) * 1e-3

    def add_end(self, last: LayerKernels, sign: int = 1) -> None:
        """The network gives out floats."""
        self.total["to_float"] += sign * (last.precision == "int8")

    def row(self, footprint: int) -> Row:
        """The sum, with what depends on all weights together."""
        far = max(0, self.weight - _NEAR_FOOTPRINTS * footprint) / 2**20
        return Row(np.array(list({**self.total, "far_weights": far}.values())), self.times)

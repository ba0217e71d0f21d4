"""An opened file and its inputs, as every runtime has them; packed: it needs numpy only."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError
from autocompress.targets.profile import Profile

Array = NDArray[Any]
Arrays = Sequence[Array]
"""One array per input of the file, in the file's order."""

WARM_UP = 5
"""Inferences before those that a profile counts."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input of an exported file; a dimension of ``None`` is free.

    Args:
        name, shape, dtype: of the input.
        axes: names of its axes where the file has them, as many as dimensions.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    axes: tuple[str | None, ...] = ()

    @property
    def free_axes(self) -> dict[str, int]:
        """Name to place of the free axes beside the batch."""
        names = self.axes or (None,) * len(self.shape)
        free = [i for i, size in enumerate(self.shape) if i and size is None]
        return {names[i] or f"{self.name}_{i}": i for i in free}


class Session(ABC):
    """An opened file.

    Attributes:
        file: for messages.
        inputs: what it takes.
        sizes: axis name to the size that the file was exported with, of its free axes.
    """

    file: Path
    inputs: tuple[TensorSpec, ...]
    sizes: Mapping[str, int] = {}

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads of one inference, as the runtime itself tells them: a property, or a class
        attribute where there is only one number; it cannot be set in ``__init__``."""

    @abstractmethod
    def prepare(self, inputs: Arrays) -> Callable[[], Any]:
        """A call without arguments that runs these inputs once and waits for the end of it.

        Args:
            inputs: one array per input, batch first; shapes and types as in ``inputs``.
        """

    def run(self, inputs: Arrays) -> list[Array]:
        """One inference; ``inputs`` as in ``prepare``."""
        found = self.prepare(inputs)()
        if isinstance(found, Mapping):
            found = list(found.values())
        parts = found if isinstance(found, list | tuple) else [found]
        return [p.numpy(force=True) if hasattr(p, "numpy") else np.array(p) for p in parts]

    def whole_ms(self, inputs: Arrays, runs: int) -> float:
        """Median time of all operators together, where the runtime tells none of each alone."""
        call, times = self.prepare(inputs), []
        for _ in range(WARM_UP + runs):
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
        return float(np.median(times[WARM_UP:]))

    @abstractmethod
    def profile(self, inputs: Arrays, runs: int = 20) -> Profile:
        """Operators, shapes and median times.

        Args:
            runs: profiled inferences, after warm-up.
        """

    @abstractmethod
    def close(self) -> None:
        """Free it; a second time does nothing."""

    def arrays(self, inputs: Arrays) -> list[Array]:
        """The inputs in the file's element types, each in one piece.

        Raises:
            InputError: another number of inputs, or another shape, than the file takes.
        """
        if len(inputs) != len(self.inputs):
            raise InputError(
                f"{self.file.name} takes {len(self.inputs)} inputs, got {len(inputs)}."
            )
        found = []
        for spec, array in zip(self.inputs, inputs, strict=True):
            shape = np.shape(array)
            wanted = spec.shape
            if len(shape) != len(wanted) or any(
                w is not None and w != s for w, s in zip(wanted, shape, strict=True)
            ):
                raise InputError(
                    f"{spec.name!r} of {self.file.name} has shape {list(wanted)} (None is free), "
                    f"got {list(shape)}."
                )
            found.append(np.ascontiguousarray(array, dtype=spec.dtype).reshape(shape))
        return found


def random_inputs(
    specs: Sequence[TensorSpec],
    batch: int = 1,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> list[Array]:
    """Inputs that fit: standard normal floats, small non-negative integers, masks of ones.

    Args:
        specs: what the session takes; a free first dimension becomes ``batch``.
        batch: samples.
        seed: of the draw.
        sizes: axis name to size, of other free dimensions.

    Raises:
        InputError: a dimension other than the first is free, and nothing tells its size.
    """
    rng = np.random.default_rng(seed)
    out = []
    for spec in specs:
        size = _size(spec, batch, sizes or {})
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            out.append(rng.standard_normal(size).astype(dtype))
        elif dtype.kind == "b" or spec.name.endswith("mask"):
            out.append(np.ones(size, dtype))
        else:
            out.append(rng.integers(0, 2, size).astype(dtype))
    return out


def _size(spec: TensorSpec, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Every dimension of an input."""
    free = {place: name for name, place in spec.free_axes.items()}
    found = [batch if i == 0 and d is None else d for i, d in enumerate(spec.shape)]
    for place, name in free.items():
        if name not in sizes:
            raise InputError(
                f"The input {spec.name!r} has shape {spec.shape}, and nothing tells how long its "
                f"axis {place} ({name}) is. Give `target: {{lengths: 128}}`, export it with fixed "
                "sizes, or pass inputs yourself."
            )
        found[place] = sizes[name]
    return tuple(int(d) for d in found if d is not None)

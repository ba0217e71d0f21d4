"""What every runtime offers: it opens an exported file and runs, times and profiles it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autocompress.errors import InputError, nearest

Array = NDArray[Any]
Inputs = Sequence[Array]
"""One array per input of the file, in the file's order."""

RUNTIMES = ("onnxruntime", "openvino", "torch", "executorch")


class TargetConfig(BaseModel):
    """Where a model is to run. Part of every record.

    Args:
        runtime: ``onnxruntime``, ``openvino``, ``torch`` or ``executorch``.
        threads: of one inference.
        batch: samples per inference, for latency.
        device: ``cpu``, ``cuda``, ``mps``, with an optional index.
        providers: ONNX Runtime execution providers in order of preference; ``None`` chooses by
            the device.
        table: a ``table.json`` written by the packed runner on another device; latency is then
            predicted from it, and the runtime here only judges accuracy.
        compile: compile the model (``torch`` only).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: str = "onnxruntime"
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)
    device: str = "cpu"
    providers: tuple[str, ...] | None = None
    table: Path | None = None
    compile: bool = False

    @classmethod
    def read(cls, data: TargetConfig | Mapping[str, Any]) -> TargetConfig:
        """Take a config, or plain data of one.

        Raises:
            InputError: an unknown key or runtime (with the nearest valid one), or a bad value.
        """
        if isinstance(data, TargetConfig):
            return data
        for key in data:
            if key not in cls.model_fields:
                raise InputError(f"`target` has no {key!r}; {nearest(key, cls.model_fields)}")
        try:
            config = cls(**data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"`target.{where}`: {first['msg']}, got {first['input']!r}.") from None
        if config.runtime not in RUNTIMES:
            raise InputError(
                f"There is no runtime {config.runtime!r}; {nearest(config.runtime, RUNTIMES)}"
            )
        return config


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input of an exported file; a dimension of ``None`` is free."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One operator of a profile.

    Args:
        name: as the runtime calls it.
        op: the runtime's kernel, e.g. ``Conv`` or ``QLinearConv``.
        ms: median time of one call; NaN where the runtime gives none.
        inputs, outputs: element type and shape of each tensor, as far as the runtime tells.
    """

    name: str
    op: str
    ms: float
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    outputs: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """Where a session spends its time.

    Args:
        nodes: in the order in which they run.
        total_ms: median of the whole run with the profiler on.
    """

    nodes: tuple[NodeTime, ...]
    total_ms: float

    def by_op(self) -> dict[str, tuple[int, float]]:
        """Kernel to number of nodes and milliseconds, the dearest first."""
        found: dict[str, tuple[int, float]] = {}
        for node in self.nodes:
            count, ms = found.get(node.op, (0, 0.0))
            found[node.op] = (count + 1, ms + (node.ms if node.ms == node.ms else 0.0))
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def as_dict(self) -> dict[str, Any]:
        """Plain data by kernel, for records."""
        return {
            "total_ms": self.total_ms,
            "ops": {op: {"nodes": n, "ms": ms} for op, (n, ms) in self.by_op().items()},
        }


class Session(Protocol):
    """An opened file."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes."""

    @property
    def threads(self) -> int:
        """Threads of one inference, as the runtime itself tells them."""

    def run(self, inputs: Inputs) -> list[Array]:
        """One inference.

        Args:
            inputs: one array per input, batch first; shapes and types as in ``inputs``.
        """

    def prepare(self, inputs: Inputs) -> Callable[[], object]:
        """A call without arguments that runs these inputs once and waits for the end of it."""

    def profile(self, inputs: Inputs, runs: int = 20) -> Profile:
        """Operators, shapes and median times.

        Args:
            runs: profiled inferences, after warm-up.
        """

    def close(self) -> None:
        """Free it."""


@runtime_checkable
class Target(Protocol):
    """A runtime on a device of this machine."""

    config: TargetConfig

    @property
    def suffix(self) -> str:
        """Of the files that it opens: ``.onnx``, ``.pt2`` or ``.pte``."""

    def open(self, path: str | Path, *, threads: int | None = None, fixed: bool = True) -> Session:
        """Open an exported file.

        Args:
            path: with the target's suffix.
            threads: takes the place of the config's, e.g. for judging accuracy.
            fixed: settle free batch dimensions to the config's batch, as for latency;
                ``False`` leaves them free.

        Raises:
            InputError: no such file, or one that the runtime cannot open.
        """

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, threads, batch, providers: JSON-able, for every record."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a runtime can be used here, with its version and devices, or why not."""

    runtime: str
    available: bool
    version: str = ""
    devices: tuple[str, ...] = ()
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {
            "runtime": self.runtime,
            "available": self.available,
            "version": self.version,
            "devices": list(self.devices),
            "reason": self.reason,
            **self.details,
        }


def check_file(path: str | Path, suffix: str) -> Path:
    """The path, if there is such a file with that suffix.

    Raises:
        InputError: there is not.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"There is no model file at {file}. Export one with `autocompress apply`.")
    if file.suffix != suffix:
        raise InputError(
            f"This runtime opens {suffix} files, got {file.name}. Export to {suffix}, or choose "
            "another runtime with `--target`."
        )
    return file


def random_inputs(specs: Sequence[TensorSpec], batch: int = 1, seed: int = 0) -> list[Array]:
    """Inputs that fit: standard normal floats, small non-negative integers.

    Args:
        specs: what the session takes; a free first dimension becomes ``batch``.
        batch: samples.
        seed: of the draw.

    Raises:
        InputError: a dimension other than the first is free.
    """
    rng = np.random.default_rng(seed)
    out = []
    for spec in specs:
        shape = tuple(batch if i == 0 and d is None else d for i, d in enumerate(spec.shape))
        if None in shape:
            raise InputError(
                f"Only the batch dimension of an input may be free, {spec.name!r} has shape "
                f"{spec.shape}. Export it with fixed sizes, or pass inputs yourself."
            )
        size = tuple(int(d) for d in shape if d is not None)
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            out.append(rng.standard_normal(size).astype(dtype))
        elif dtype.kind == "b":
            out.append(np.ones(size, dtype))
        else:
            out.append(rng.integers(0, 2, size).astype(dtype))
    return out

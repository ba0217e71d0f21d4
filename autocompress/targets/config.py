"""The ``target`` section of a study: fields common to all runtimes, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field

from autocompress.errors import InputError
from autocompress.policy.section import Section, read_as
from autocompress.targets import registry

FORMER = {"providers": None, "compile": False}
"""Once fields of every runtime; files of that time may say that they ask for nothing."""


Length = Annotated[int, Field(ge=1)]
Lengths = Length | tuple[Length, ...] | dict[Length, Annotated[float, Field(ge=0)]]


class TargetConfig(Section):
    """Where a model is to run. Part of every record.

    A runtime with fields of its own subclasses it and names the class as its ``config_model``.

    Args:
        runtime: the target's name; see ``autocompress targets``.
        threads: of one inference.
        batch: samples per inference, for latency.
        device: ``cpu``, ``cuda``, ``mps``, with an optional index.
        lengths: of axes that are free in the file, such as a text's length: one, several (one
            inference of each; the latency is their mean), shares by length (``{16: 0.7, 128:
            0.3}``), or one of these by axis name. By default the size of the export.
        table: a ``table.json`` written by the packed runner on another device; latency is then
            predicted from it, and the runtime here only judges accuracy.
    """

    runtime: str = "onnxruntime"
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)
    device: str = "cpu"
    lengths: Lengths | dict[str, Lengths] | None = None
    table: Path | None = None

    @classmethod
    def read(cls, data: Any, *, where: str | None = None) -> Self:
        """Take a config, or plain data of one, into the config model of its runtime.

        Raises:
            InputError: an unknown key or runtime (with the nearest valid one), or a bad value.
            TargetUnavailable: the runtime comes with a package that is broken.
        """
        plain = data.model_dump() if isinstance(data, TargetConfig) else dict(data)
        runtime = plain.setdefault("runtime", cls.model_fields["runtime"].default)
        if not isinstance(runtime, str):
            raise InputError(f"`target.runtime` must be a runtime's name, got {runtime!r}.")
        model: Any = registry.load(runtime).config_model
        if type(data) is model:
            return data
        for key, nothing in FORMER.items():
            if key not in model.model_fields and plain.get(key, 0) == nothing:
                plain.pop(key, None)
        found: Self = read_as(model, plain, where or f"`target` with the runtime {runtime!r}")
        return found

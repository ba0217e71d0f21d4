"""The ``target`` section of a study: fields common to all runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from autocompress.machine.ssh import SCHEME
from autocompress.policy.defaults import DEFAULT_RUNTIME
from autocompress.policy.section import Section

FORMER = {"providers": None, "compile": False}
"""Once fields of every runtime; files of that time may say that they ask for nothing."""


Length = Annotated[int, Field(ge=1, le=100_000_000)]
Lengths = Length | tuple[Length, ...] | dict[Length, Annotated[float, Field(ge=0)]]


class ThroughputSection(Section):
    """How the throughput is measured.

    Args:
        batch: samples per inference.
        threads: of one inference; ``null``: those of the target.
    """

    batch: int = Field(32, ge=1, le=65_536)
    threads: int | None = Field(None, ge=1, le=1024)


class TargetConfig(Section):
    """Where a model is to run. Part of every record.

    A runtime with fields of its own subclasses it and names the class as its ``config_model``.

    Args:
        runtime: the target's name; see ``autocompress targets``.
        threads: of one inference.
        batch: samples per inference, for latency.
        device: ``cpu``, ``cuda``, ``mps``, with an optional index; or ``ssh://user@host:port``, a
            device on which the files are timed.
        lengths: of axes that are free in the file, such as a text's length: one, several (one
            inference of each; the latency is their mean), shares by length (``{16: 0.7, 128:
            0.3}``), or one of these by axis name. By default the size of the export.
        throughput: batch and threads of ``throughput>=...``; by default those of the latency.
        table: a ``table.json`` written by the packed runner on another device; latency is then
            predicted from it, and the runtime here only judges accuracy.
    """

    runtime: str = DEFAULT_RUNTIME
    threads: int = Field(1, ge=1, le=1024)
    batch: int = Field(1, ge=1, le=65_536)
    device: str = "cpu"
    lengths: Lengths | dict[str, Lengths] | None = None
    throughput: ThroughputSection | None = None
    table: Path | None = None


def named(text: str, python: str | None = None) -> dict[str, Any]:
    """A target as a word says it.

    Args:
        text: a runtime's name, or the address of a device.
        python: of that device.
    """
    if not text.startswith(SCHEME):
        return {"runtime": text}
    there = {} if python is None else {"python": python}
    return {"runtime": DEFAULT_RUNTIME, "device": text, **there}

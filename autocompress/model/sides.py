"""Sides of modules: along which axis of what a module loses indices where channels go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class OwnAxis:
    """An axis of a parameter or buffer of the module's own.

    Args:
        attribute: that holds it.
        axis: along which channels lie.
    """

    attribute: str
    axis: int


@dataclass(frozen=True, slots=True)
class CallAxis:
    """An axis of what a call in the module's forward reads or gives.

    Args:
        call: its name, see ``model.call_sites``.
        tensor: ``i`` for what it reads, ``o0``, ``o1``, ... for what it gives.
        axis: along which channels lie; -1 for none in particular.
        shape: of the tensor.
    """

    call: str
    tensor: str
    axis: int
    shape: tuple[int, ...]


LayerSide = Literal["out", "in", "both", "heads"]
"""Outputs, inputs, ``both`` where they are the same (norms, depthwise), or ``heads``: the inner
channels of an attention, which nothing outside sees."""
Side = LayerSide | OwnAxis | CallAxis
ModuleSide = tuple[str, Side]
"""Dotted name of a module, and one of its sides."""
Removals = Mapping[ModuleSide, Sequence[int]]
"""The indices that go, of the uncompressed model; of calls also where none do."""

"""What a runtime's profiler tells: operators, their times, and of which class each kernel is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class KernelClass(str, Enum):  # noqa: UP042 (devices have Python 3.10)
    """What a kernel does, as far as a policy's promises are concerned."""

    __str__ = str.__str__

    INTEGER = "integer"
    """Multiplies integers: convolutions, products, recurrent layers, attention."""
    FLOAT = "float"
    """Multiplies floating-point numbers, of 32 bits or fewer."""
    QUANTIZE = "quantize"
    """Goes from float to integers or back."""
    LAYOUT = "layout"
    """Moves or casts data and computes nothing."""
    FUSED = "fused"
    """Several layers in one kernel that does not tell what it does inside."""
    OTHER = "other"
    """Anything else: activations, additions, pooling."""

    @property
    def multiplies(self) -> bool:
        """Whether a layer's weights are at work in it."""
        return self in (KernelClass.INTEGER, KernelClass.FLOAT)


def kernel_class(
    op: str, known: Mapping[str, KernelClass], multiplying: re.Pattern[str]
) -> KernelClass:
    """The class of a kernel by its name: as listed, else float where the pattern is in it."""
    if op in known:
        return known[op]
    return KernelClass.FLOAT if multiplying.search(op) else KernelClass.OTHER


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One operator of a profile.

    Args:
        name: as the runtime calls it; it carries the name of the file's node.
        op: the runtime's kernel, e.g. ``Conv`` or ``QLinearConv``.
        ms: median time of one call; NaN where the runtime gives none.
        inputs, outputs: element type (``float``, ``float16``, ``int8``, ...) and shape of each
            tensor, as far as the runtime tells.
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
        """Kernel to number of nodes and milliseconds, the most expensive first."""
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

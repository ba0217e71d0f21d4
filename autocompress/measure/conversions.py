"""What integer layers cost beside their arithmetic: conversions, and what computes in float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autocompress.targets.base import NodeTime, Profile, Target
from autocompress.targets.profile import KernelClass

_CONVERTING = (KernelClass.QUANTIZE, KernelClass.LAYOUT)
_LISTED = 4
_SLOWEST = 0.8
"""Ratio to the float file above which integer layers have gained little."""


@dataclass(frozen=True)
class Conversions:
    """Time in conversions, and the operators that stand between integer layers.

    Args:
        share: of the kernels' time that goes into quantizing, dequantizing, casts, explicit
            paddings and changes of layout.
        between: operators on floats with their number and milliseconds, the most expensive first.
        integer: kernels that multiply integers.
    """

    share: float
    between: dict[str, tuple[int, float]]
    integer: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for records."""
        between = {op: {"nodes": n, "ms": ms} for op, (n, ms) in self.between.items()}
        return {"share": self.share, "between": between, "integer_kernels": self.integer}


def conversions(target: Target, profile: Profile) -> Conversions:
    """Look for conversions in a runtime's profile.

    Args:
        target: tells what its kernels do.
        profile: of a file that may hold integer layers.
    """
    classes = [target.classify(node) for node in profile.nodes]
    pairs = list(zip(profile.nodes, classes, strict=True))
    total = _ms(profile.nodes)
    spent = _ms(n for n, kind in pairs if kind in _CONVERTING)
    floats = (n for n, kind in pairs if kind not in _CONVERTING and _in_float(n))
    return Conversions(
        spent / total if total else 0.0, _by_op(floats), classes.count(KernelClass.INTEGER)
    )


def conversion_notes(
    found: Conversions, profile: Profile, ratio: float | None, *, reduced: bool = False
) -> list[str]:
    """What people should know of a file with integer layers; empty for files without.

    Args:
        found: of the profile.
        profile: of the file.
        ratio: of its latency to the uncompressed file's, where that was timed.
        reduced: the processor has no 8-bit dot products.
    """
    if not found.integer:
        return []
    between = f" Operators on floats: {listed(found.between, _LISTED)}." if found.between else ""
    told = f"Conversions take {found.share:.0%} of the kernels' time.{between}"
    if ratio is None or ratio <= _SLOWEST:
        return [told]
    slow = " This processor has no 8-bit dot products, so that integers gain little." * reduced
    return [
        f"{found.integer} integer kernel{'s' * (found.integer != 1)}, but {ratio:.2f} of the "
        f"uncompressed latency: {told} Most expensive of all: {listed(profile.by_op(), 3)}.{slow}"
    ]


def listed(by_op: Mapping[str, tuple[int, float]], count: int) -> str:
    """The first operators of several, with their nodes and milliseconds, for a sentence."""
    found = [f"{op} ({n} node{'s' * (n != 1)}, {ms:.3f} ms)" for op, (n, ms) in by_op.items()]
    rest = len(found) - count
    return ", ".join(found[:count]) + (f" and {rest} more" if rest > 0 else "")


def _in_float(node: NodeTime) -> bool:
    kinds = [kind for kind, _ in (*node.inputs[:1], *node.outputs)]
    return bool(kinds) and all(kind.startswith(("float", "bfloat", "double")) for kind in kinds)


def _by_op(nodes: Iterable[NodeTime]) -> dict[str, tuple[int, float]]:
    return Profile(tuple(nodes), 0.0).by_op()


def _ms(nodes: Iterable[NodeTime]) -> float:
    return sum(ms for _, ms in _by_op(nodes).values())

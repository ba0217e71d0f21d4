"""Inputs to time a file on, where axes beside the batch are free: of one length or of several.

Packed for other devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autocompress.errors import InputError
from autocompress.targets.session import Arrays, Session, random_inputs

_SHARES = 20
"""A distribution of lengths is timed as at most so many inferences."""


class Lengths(Protocol):
    """How many samples, and of which lengths: a target's config tells."""

    @property
    def batch(self) -> int:
        """Samples per inference."""

    @property
    def lengths(self) -> Any:
        """Of free axes; see ``TargetConfig``."""


def drawn_inputs(session: Session, config: Lengths, seed: int = 0) -> list[Arrays]:
    """Random inputs of a file, one for each length that is to be timed.

    Args:
        session: the opened file.
        config: ``batch``, and ``lengths`` where axes are free; by default the size that the file
            was exported with.
        seed: of the draw.

    Raises:
        InputError: a free axis whose size nothing tells.
    """
    free = {axis for spec in session.inputs for axis in spec.free_axes}
    return [
        random_inputs(session.inputs, config.batch, seed, {**session.sizes, **sizes})
        for sizes in drawn_sizes(config.lengths, sorted(free))
    ]


def drawn_sizes(lengths: Any, axes: Sequence[str]) -> list[dict[str, int]]:
    """Axis name to size, once for each inference.

    Args:
        lengths: one length, several (each as often as it stands there), a length's share by
            length, or one of these by axis name.
        axes: names of the free axes.
    """
    if lengths is None or not axes:
        return [{}]
    by_axis = lengths if _by_axis(lengths) else dict.fromkeys(axes, lengths)
    if not all(axis in axes for axis in by_axis) and len(axes) == len(by_axis) == 1:
        by_axis = {axes[0]: next(iter(by_axis.values()))}  # a runtime that does not keep names
    listed = {axis: _listed(value) for axis, value in by_axis.items()}
    count = max(len(sizes) for sizes in listed.values())
    return [{axis: sizes[i % len(sizes)] for axis, sizes in listed.items()} for i in range(count)]


def _by_axis(lengths: Any) -> bool:
    return isinstance(lengths, Mapping) and all(not str(key).isdecimal() for key in lengths)


def _listed(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    if not isinstance(value, Mapping):
        return [int(size) for size in value]
    total = sum(float(share) for share in value.values())
    if not total > 0:
        raise InputError("The shares of `target.lengths` must sum to more than 0.")
    counts = {int(s): max(1, round(_SHARES * float(p) / total)) for s, p in value.items() if p}
    return [size for size, count in counts.items() for _ in range(count)]

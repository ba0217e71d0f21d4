"""The ways to compress that a space offers, by the words people have for them."""

from __future__ import annotations

from typing import Any

BITS, CHANNELS, RANK = "8 bits", "half of the channels", "half of the rank"
ZEROS, BLOCKS = "two of four weights zero", "every other block gone"
LEVELS: dict[str, dict[str, list[Any]]] = {
    BITS: {"weight_bits": [32, 8], "activation_bits": [32, 8]},
    CHANNELS: {"prune_ratio": [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75]},
    RANK: {"rank_ratio": [None, 0.75, 0.5, 0.25]},
    ZEROS: {"pattern": [None, "2:4"]},
    BLOCKS: {"block": ["keep", "gone"]},
}
"""What a space offers of each way, which is tried as its name says."""


def space_of(ways: list[str], **more: Any) -> dict[str, Any]:
    """A space that offers some ways for every layer, as a file holds it.

    Args:
        ways: keys of ``LEVELS``.
        **more: other keys of a space.
    """
    rule: dict[str, Any] = {"match": "*"}
    for way in ways:
        rule |= LEVELS[way]
    return {"name": "advised", "rules": [rule], **more}

"""Widths in channels: every channel group keeps about so many, however many it had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autocompress.policy.technique import Field, Technique

if TYPE_CHECKING:
    from autocompress.policy.inventory import ChannelGroup
    from autocompress.policy.policy import LayerPolicy


class Widths(Technique):
    """Wide layers lose many channels, narrow ones none."""

    name = "widths"
    fields = (
        Field(
            "channel_count",
            0,
            "about so many channels stay, or all where there are fewer; 0 leaves all.",
            values=(0, 64, 32, 16, 8, 4),
        ),
    )
    knob = "widths"
    stage = "channels"
    coupled = True
    removes = True

    def timed_levels(self, count: int) -> Sequence[int]:
        """Every width: fewer channels are quicker."""
        return range(count)

    def kept(self, group: ChannelGroup, policy: LayerPolicy, multiple: int) -> int:
        """The nearest number that can be cut."""
        wanted = policy.value("channel_count") or group.channels
        return group.kept(max(0.0, 1 - wanted / group.channels), multiple)

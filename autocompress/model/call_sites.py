"""Calls in a module's forward that say sizes or places of channels: views, splits, slices.

They are told apart by their number within one run of the module whose forward makes them, which
is found on the stack, so that helper functions count as their caller's.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

SIZED = frozenset({"view", "reshape", "unflatten", "expand"})
"""They say the sizes of what they give."""
CUT = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk"})
"""They cut a tensor into several along one axis."""
TAKEN = frozenset({"__getitem__", "narrow"})
"""They take some places along an axis."""
CALLS = SIZED | CUT | TAKEN

_RUN = nn.Module._call_impl.__code__


def running_module(depth: int = 1) -> Any:
    """The innermost module that runs, ``None`` outside of all.

    Args:
        depth: frames to skip.
    """
    frame = sys._getframe(depth)
    while frame is not None:
        if frame.f_code is _RUN:
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]  # None at the bottom of the stack
    return None

"""Calls in a module's forward that say sizes, places or numbers of channels: views, slices, means.

A call is known by where its code stands, in the module's forward and in the functions that this
calls, and counted from one run of that place to the next: a loop or a branch that runs otherwise
than before moves no other call.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import nn

SIZED = frozenset({"view", "reshape", "unflatten", "expand"})
"""They say the sizes of what they give."""
CUT = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk"})
"""They cut a tensor into several along one axis."""
TAKEN = frozenset({"__getitem__", "narrow"})
"""They take some places along an axis."""
AVERAGED = frozenset({"mean"})
"""They divide by how many channels there are."""
TURNED = frozenset({"roll"})
"""They move channels by so many places, the last ones to the front."""
CALLS = SIZED | CUT | TAKEN | AVERAGED | TURNED

_RUN = nn.Module._call_impl.__code__
_TORCH, _OURS = (os.path.dirname(os.path.abspath(str(f))) for f in (torch.__file__, __file__))
_PASSED = (_TORCH + os.sep, os.path.dirname(_OURS) + os.sep)
"""Folders of torch and of this package: which of their functions are on the way may differ."""
_NETWORKS = os.path.join(os.path.dirname(_OURS), "workloads") + os.sep


def running_module(depth: int = 1) -> tuple[Any, str]:
    """The innermost module that runs, and where in the code of its forward.

    Args:
        depth: frames to skip.

    Returns:
        ``None`` and an empty text outside of all modules. The place holds no slash.
    """
    frame = sys._getframe(depth)
    found: list[str] = []
    while frame is not None:
        if frame.f_code is _RUN:
            return frame.f_locals["self"], "<".join(found)
        file = frame.f_code.co_filename
        if not file.startswith(_PASSED) or file.startswith(_NETWORKS):
            found.append(_position(frame.f_code, frame.f_lasti))
        frame = frame.f_back  # type: ignore[assignment]  # None at the bottom of the stack
    return None, ""


@lru_cache(maxsize=4096)
def _position(code: CodeType, at: int) -> str:
    """A place in a function, the same wherever the file lies and whichever Python runs it."""
    for number, (line, end, column, until) in enumerate(code.co_positions()):
        if number == at // 2:
            lines = [None if n is None else n - code.co_firstlineno for n in (line, end)]
            return f"{code.co_qualname}:{lines[0]}:{lines[1]}:{column}:{until}"
    return code.co_qualname


class Counted:
    """Names the calls of one run: place, function, and the how-manieth of them it is."""

    def __init__(self) -> None:
        self._met: Counter[str] = Counter()

    def name(self, place: str, function: str) -> str:
        """The name of a call that is made now; no slash is in it."""
        own = f"{place}|{function}"
        self._met[own] += 1
        return f"{own}#{self._met[own] - 1}"


def code_of(name: str) -> str:
    """The name of a call without its count."""
    return name.rpartition("#")[0]


def averages(name: str) -> bool:
    """Whether a call divides by how many channels there are."""
    return code_of(name).rpartition("|")[2] in AVERAGED


def earlier(name: str) -> Iterator[str]:
    """The names of a call when the same code ran before, in the same run."""
    own, _, number = name.rpartition("#")
    return (f"{own}#{i}" for i in reversed(range(int(number))))

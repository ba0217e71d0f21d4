"""Messages between a study and a device: a line that tells the sizes, plain data, bytes. Packed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import IO, Any

MARK = b"autocompress-message "
"""Begins every message: what a login shell prints before, on whole lines or not, is passed over."""
_LONGEST_LINE = 1 << 16


class Ended(EOFError):
    """The other side is gone."""


def send(stream: IO[bytes], data: Mapping[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Write one message.

    Args:
        stream: written to and flushed.
        data: JSON-able.
        parts: bytes that come with it.
    """
    text = json.dumps(data).encode()
    sizes = [len(text), *(len(part) for part in parts)]
    stream.write(MARK + json.dumps(sizes).encode() + b"\n")
    for piece in (text, *parts):
        stream.write(piece)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Read the next message; anything else before it is passed over.

    Raises:
        Ended: the stream ends before or within it.
    """
    while True:
        line = stream.readline(_LONGEST_LINE)
        if not line:
            raise Ended("the stream has ended")
        _, mark, told = line.partition(MARK)
        if mark:
            break
    try:
        sizes = [int(size) for size in json.loads(told)]
    except ValueError:
        raise Ended("the stream was cut off") from None
    pieces = [_exactly(stream, size) for size in sizes]
    found: dict[str, Any] = json.loads(pieces[0])
    return found, pieces[1:]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    pieces, left = [], size
    while left:
        piece = stream.read(left)
        if not piece:
            raise Ended("the stream was cut off")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)

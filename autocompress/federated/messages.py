"""What server and clients send each other: a head as JSON, and arrays.

One safetensors file in memory, which holds numbers and text only: nothing in it can be run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError

_HEAD = "head"
Shape = tuple[int, ...] | None


def pack(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """One message.

    Args:
        head: plain data.
        arrays: numbers.
    """
    from safetensors.numpy import save

    # a file of nothing cannot be written
    held = {n: np.ascontiguousarray(a) for n, a in arrays.items()} or {"": np.zeros(0)}
    return save(held, {_HEAD: json.dumps(head)})


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Head and arrays of a message.

    Raises:
        InputError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(message)
        size = int.from_bytes(message[:8], "little")
        about = json.loads(message[8 : 8 + size])["__metadata__"]
        head = json.loads(about[_HEAD])
        if not isinstance(head, dict):
            raise ValueError("its head is no mapping")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"A message cannot be read: {error}.") from None
    arrays.pop("", None)
    return head, arrays


@dataclass(frozen=True)
class Request:
    """What all clients are asked in one round.

    Args:
        kind: which of a client's answers.
        expected: name to the shape of the array that must come back; ``None`` for a histogram.
        args: plain data.
        arrays: numbers.
        blobs: larger things that clients keep, so that each is sent once: digest to its bytes.
        each: keep the answer of every client apart as well; for small ones.
    """

    kind: str
    expected: Mapping[str, Shape]
    args: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    each: bool = False

    @property
    def key(self) -> str:
        """Digest of all that the answer depends on."""
        told = hashlib.sha256(
            json.dumps([self.kind, self.args, sorted(self.blobs)], sort_keys=True).encode()
        )
        for name, array in sorted(self.arrays.items()):
            told.update(json.dumps([name, list(array.shape), str(array.dtype)]).encode())
            told.update(np.ascontiguousarray(array).tobytes())
        return told.hexdigest()[:24]


@dataclass(frozen=True)
class Unanswered:
    """What a transport tells where a client gives no answer.

    Args:
        key: of the request that it was asked.
        reason: for people.
    """

    key: str
    reason: str


def digest_of(blob: bytes) -> str:
    """What a blob is called."""
    return hashlib.sha256(blob).hexdigest()[:24]

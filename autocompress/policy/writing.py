"""The one way to write a file so that a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autocompress.policy.files import check_output, naming

_PROBED = 1 << 20
"""Bytes that find out whether a disk is full: more than a page that a file has begun."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name for a new file, which takes the place of ``path`` when the block has ended well.

    Any number of processes and threads may write the same file; parent folders are made.

    Raises:
        InputError: something lies there that is no file: a folder, a device.
        OSError: the disk is full, in whatever words the library that writes puts it.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{threading.get_ident()}"
    partial = path.with_name(f".{path.stem}.{mark}{path.suffix}")
    try:
        with naming(path):
            yield partial
            os.replace(partial, path)
    except OSError:
        raise
    except Exception as error:
        _check_room(partial, error)
        raise
    finally:
        partial.unlink(missing_ok=True)


def read_back(path: Path) -> Any:
    """JSON that a library wrote, which on a full disk may stop in the middle and say nothing.

    Raises:
        OSError: the disk is full.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _check_room(path, error)
        raise


def _check_room(partial: Path, error: Exception) -> None:
    """Torch and safetensors have errors of their own for a disk that is full: see whether it is."""
    try:
        with partial.open("ab") as file:
            file.write(bytes(_PROBED))
    except OSError as found:
        raise OSError(found.errno, found.strerror, str(partial)) from error


def without_password(url: str) -> str:
    """A URL for people and files, which are handed around: its user stays, its password goes."""
    head, separator, rest = url.partition("://")
    if not separator:
        return url
    place, at, tail = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    user = place.partition(":")[0] + at if at else ""
    return head + separator + user + re.sub(r"(?i)([?&;]password=)[^&;]*", r"\1", tail)


def printable(text: str) -> str:
    """A text of somebody else's on one line, without signs that steer a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def scrubbed(text: str, url: str | None) -> str:
    """A message of somebody else's about a URL, without the password that it may repeat."""
    return text if url is None else text.replace(url, without_password(url))

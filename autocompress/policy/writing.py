"""The one way to write a file so that a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name for a new file, which takes the place of ``path`` when the block has ended well.

    Any number of processes and threads may write the same file; parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{threading.get_ident()}"
    partial = path.with_name(f".{path.stem}.{mark}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def without_password(url: str) -> str:
    """A URL for people and files, which are handed around: its user stays, its password goes."""
    head, separator, rest = url.partition("://")
    if not separator:
        return url
    place, at, tail = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    user = place.partition(":")[0] + at if at else ""
    return head + separator + user + re.sub(r"(?i)([?&;]password=)[^&;]*", r"\1", tail)


def scrubbed(text: str, url: str | None) -> str:
    """A message of somebody else's about a URL, without the password that it may repeat."""
    return text if url is None else text.replace(url, without_password(url))

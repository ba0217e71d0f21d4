"""The file ``screened.jsonl``: what a study looked at quickly, so that resuming need not again."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import UserDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.policy.claims import Count, Number
from autocompress.policy.files import naming, read_lines
from autocompress.policy.reading import read_line
from autocompress.policy.section import Section
from autocompress.results.screened import Screened
from autocompress.track.folder import plain
from autocompress.track.journal import cut_torn_line

_REMEDY = "Delete the file; it is made again."


class _Line(Section):
    policy: str
    images: Count
    kl: Number
    stderr: Number
    made_with: str = ""


def _lines(path: Path) -> Iterator[_Line]:
    for number, line in read_lines(path, "list of screened policies", _REMEDY):
        try:
            yield _Line.read(read_line(line), where="the entry")
        except InputError as error:
            raise InputError(
                f"{path}, line {number}, is not a screened policy: {error} {_REMEDY}"
            ) from None


def read_screened(path: Path) -> dict[str, Screened]:
    """What a study looked at quickly, by the policy's untrained digest; empty without the file.

    Of a policy that was looked at several times the last counts. A line that is still being written
    is left out.

    Raises:
        InputError: the file is damaged.
    """
    found = _lines(path) if path.is_file() else ()
    return {line.policy: Screened(line.kl, line.stderr, line.images) for line in found}


class ScreenedPolicies(UserDict[tuple[str, int], Screened]):
    """From a policy's untrained digest and a number of images to what screening it gave.

    Each new one is appended to the file, if it is finite. It is a cache: unlike a trial it is not
    flushed to the disk, and a line that was torn by a kill is cut off.

    Args:
        path: of the file; made with the first entry.
        made_with: model, data and settings that divergences depend on. Entries of others stay in
            the file and are not taken.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        super().__init__()
        self._path = path
        text = json.dumps(plain(made_with), sort_keys=True)
        self._made_with = hashlib.sha256(text.encode()).hexdigest()[:16]
        if path.is_file():
            self._read()

    def _read(self) -> None:
        handle = os.open(self._path, os.O_RDWR)
        try:
            cut_torn_line(handle)
        finally:
            os.close(handle)
        for found in _lines(self._path):
            if found.made_with == self._made_with:
                screened = Screened(found.kl, found.stderr, found.images)
                self.data[found.policy, found.images] = screened

    def __setitem__(self, key: tuple[str, int], found: Screened) -> None:
        super().__setitem__(key, found)
        if not math.isfinite(found.kl + found.stderr):
            return
        policy, images = key
        line = {
            "policy": policy,
            "images": images,
            "kl": found.kl,
            "stderr": found.stderr,
            "made_with": self._made_with,
        }
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")

"""Temporary folders, and what becomes of those whose process was killed."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


def make_scratch(purpose: str) -> Path:
    """An empty folder in the system's temporary one (``TMPDIR``), for the caller to remove.

    Its name tells the machine and the process. Folders of this user that processes of this machine
    left behind when they were killed are removed first.

    Args:
        purpose: a word for whoever looks into the temporary folder.
    """
    _sweep()
    return Path(tempfile.mkdtemp(prefix=f"autocompress-{purpose}-{_machine()}-{os.getpid()}-"))


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder as ``make_scratch`` makes it, removed at the end."""
    folder = make_scratch(purpose)
    try:
        yield folder
    finally:
        # a library may still write while it goes; what is left is swept by the next process
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _sweep() -> None:
    """Once per process: the folder may hold thousands."""
    if not hasattr(os, "getuid"):
        return
    for path in Path(tempfile.gettempdir()).glob(f"autocompress-*-{_machine()}-*"):
        found = re.fullmatch(rf"autocompress-[a-z]+-{_machine()}-(\d+)-\w+", path.name)
        if found is None or _runs(int(found[1])):
            continue
        try:
            about = path.lstat()
        except OSError:
            continue
        # no link that somebody planted is followed, and nobody else's folder is touched
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no process's number
        return True
    return True


def _machine() -> str:
    """Where a process's number means something: other machines, and containers, may share the
    folder without knowing each other's processes."""
    namespace = Path("/proc/self/ns/pid")
    known = os.readlink(namespace) if namespace.is_symlink() else ""
    return hashlib.sha256(f"{platform.node()}|{known}".encode()).hexdigest()[:8]

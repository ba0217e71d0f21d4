"""Files that people name: of which kind they are, and what the system says of them."""

from __future__ import annotations

import errno
import os
import stat
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from autocompress.errors import AutocompressError, InputError

LARGEST_FILE = 16 * 2**20
"""Bytes of a file that is read as a whole, and of a line of one that is read by lines."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk is no fault of whatever writes to it, with the file's name or without."""
_LONGEST_NAME = 200
_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_KINDS = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "folder"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
)


def kind(path: str | Path, *, follow: bool = True) -> str | None:
    """What lies at a path: ``file``, ``folder``, ``link``, ``pipe``, ``socket`` or ``device``.

    Args:
        path: nothing there is opened: a pipe would wait for its other end.
        follow: tell of what a link points to.

    Returns:
        ``None`` where nothing is there.
    """
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a zero byte is in no name
        return None
    return next((name for fits, name in _KINDS if fits(mode)), "device")


def open_file(path: str | Path, what: str, missing: str = "") -> IO[bytes]:
    """Open a regular file to read.

    Args:
        path: of it.
        what: it should be, for error messages: ``study``, ``recipe``.
        missing: what to do where there is no such file.

    Raises:
        InputError: nothing is there, or something that is no file, or it cannot be read.
    """
    try:
        found = kind(path)
        if found == "file":
            return open(path, "rb", opener=_at_once)
    except OSError as error:
        raise InputError(f"The {what} {_short(path)!r} cannot be read: {error.strerror}.") from None
    if found is None:
        raise InputError(f"There is no {what} at {_short(path)}. {missing}".rstrip())
    raise InputError(f"{path} is a {found}, and a {what} is a plain file. Give its path.")


def _at_once(path: str, flags: int) -> int:
    # should a pipe have taken its place; Windows has none in folders
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_lines(path: Path, what: str, remedy: str) -> Iterator[tuple[int, bytes]]:
    """Whole lines of a file with their numbers; a torn last line is left out.

    Args:
        path: of a file, which may be growing.
        what: it is, for error messages.
        remedy: what to do where it is damaged.

    Raises:
        InputError: no such file, or a line that is longer than any of ours.
    """
    with open_file(path, what) as file:
        number = 0
        while line := file.readline(LARGEST_FILE + 1):
            number += 1
            if len(line) > LARGEST_FILE:
                raise InputError(
                    f"{path}, line {number}, is longer than {LARGEST_FILE >> 20} MB, which no line "
                    f"of a {what} is. {remedy}"
                )
            if line.endswith(b"\n"):
                yield number, line


def check_output(path: str | Path) -> None:
    """See that a file can be written at a path, before there is anything to write.

    Raises:
        InputError: something else is there, or what should be a folder of it is none.
    """
    found = kind(path)
    folder = Path(path).parent.resolve()
    if folder == Path("/dev") or folder.is_relative_to("/proc"):
        found = "device"  # /dev/stdout is a link, and would become a file
    if found not in (None, "file"):
        raise InputError(f"{path} is a {found}, and a file is to be written. Give another path.")
    above = no_folder(path)
    if above is not None:
        raise InputError(f"{path} cannot be written: {above} is no folder. Give another path.")


def no_folder(path: str | Path) -> Path | None:
    """Which of the folders above a path exists and is none."""
    for above in Path(path).parents:
        if kind(above, follow=False) is not None:
            return None if kind(above) == "folder" else above
    return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the system name a file: a write that fails does not know its own."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def disk_full(error: BaseException) -> bool:
    """Whether somebody wrote to a disk that is full, which is no fault of what was written."""
    return isinstance(error, OSError) and error.errno in _FULL


def as_ours(error: Exception, remedy: str = "") -> AutocompressError | None:
    """What the system says of a file, as an error of ours; ``None`` where it is a bug of someone's.

    The one rule of which errors of the system are told in a sentence: no memory, a full disk, and
    those that name a file. What code of the user's raises (a factory, a model, a metric) is not
    among them.

    Args:
        error: as caught.
        remedy: in place of "give another path".
    """
    if isinstance(error, AutocompressError):
        return error
    if isinstance(error, MemoryError):
        return AutocompressError(f"The memory does not suffice. {error}".strip())
    if not isinstance(error, OSError) or not error.strerror:
        return None
    full = disk_full(error)
    named = isinstance(error.filename, str | bytes | os.PathLike)
    if not full and (not named or _of_the_users(error)):
        return None
    where = _short(os.fsdecode(error.filename)) if named else "A file cannot be written"
    remedy = remedy or ("Make room, or give" if full else "Mend that, or give") + " another path."
    return (AutocompressError if full else InputError)(f"{where}: {error.strerror}. {remedy}")


@cache
def _libraries() -> tuple[Path, ...]:
    return (Path(__file__).parent.parent, *(Path(sysconfig.get_path(p)) for p in _PATHS))


def _of_the_users(error: OSError) -> bool:
    """Whether code was running that is neither ours nor a library's."""
    frames = traceback.walk_tb(error.__traceback__)
    names = {frame.f_code.co_filename for frame, _ in frames}
    files = [Path(name) for name in names if not name.startswith("<")]
    return any(not any(file.is_relative_to(p) for p in _libraries()) for file in files)


def _short(path: str | Path) -> str:
    """A name for a message; what is too long to be one is cut in its middle."""
    name, half = str(path), _LONGEST_NAME // 2
    return name if len(name) <= 2 * half else f"{name[:half]}...{name[-half:]}"

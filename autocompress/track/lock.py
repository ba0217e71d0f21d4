"""One writer for a run: a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

from autocompress.errors import AutocompressError, InputError
from autocompress.track.folder import RunFolder

#: runs that this process holds: the kernel's lock does not stop a process from itself
_held: set[str] = set()


class RunLock:
    """Holds a run while this process writes it; nothing of the run is touched before.

    A POSIX record lock: it dies with its process, however that ends, and is not inherited by
    forked workers that outlive a killed parent. It would be dropped by closing any other handle to
    the same file in this process, therefore the check for ourselves comes first.

    Args:
        folder: of the run; made if it is not there.

    Raises:
        InputError: another process writes this run; its number is named. Or it holds links.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        folder.root.mkdir(parents=True, exist_ok=True)
        folder.check_plain()
        self._key = str(folder.lock.resolve())
        if self._key in _held:
            raise InputError(
                f"{folder.root} is already being written by this process ({os.getpid()}). "
                "Close that journal first."
            )
        self._handle = self._acquire()
        _held.add(self._key)

    def _acquire(self) -> int:
        handle = os.open(self.folder.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(handle)
            os.close(handle)
            if not isinstance(error, BlockingIOError | PermissionError):
                raise
            raise InputError(
                f"{self.folder.root} is being written by process {owner}. Wait for it, end it, "
                "or choose another folder with --out."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return handle

    def check(self) -> None:
        """See that the lock file is still the one that is held.

        Raises:
            AutocompressError: it, or the whole folder, was deleted or replaced.
        """
        held = os.fstat(self._handle)
        try:
            found = os.stat(self.folder.lock)
        except FileNotFoundError:
            found = None
        if found is not None and (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino):
            return
        if not self.folder.is_run:  # what writes a file makes its folder anew
            raise AutocompressError(
                f"The folder {self.folder.root} was deleted while its study ran. What was measured "
                "is gone with it; start the study again."
            )
        raise AutocompressError(
            f"{self.folder.lock} was deleted while its study ran, so that another search may write "
            "the same run. The trials so far are kept; go on with --resume when no other runs."
        )

    def release(self) -> None:
        """Let others write the run; releasing twice does nothing."""
        if self._key in _held:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            _held.discard(self._key)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def writer_of(folder: RunFolder) -> str | None:
    """Number of the process that is writing a run now, or ``None``."""
    if str(folder.lock.resolve()) in _held:
        return str(os.getpid())  # closing a second handle here would drop our own lock
    try:
        handle = os.open(folder.lock, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        os.lockf(handle, os.F_TEST, 0)
    except (BlockingIOError, PermissionError):
        return _owner(handle)
    finally:
        os.close(handle)
    return None


def _owner(handle: int) -> str:
    return os.pread(handle, 64, 0).decode("ascii", "replace").strip() or "unknown"

"""The journal ``trials.jsonl``: one line per finished trial, on disk before anything else happens.

Everything else (MLflow, the report, the front) can be rebuilt from it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autocompress.errors import AutocompressError, InputError
from autocompress.policy.files import LARGEST_FILE, kind, naming, read_lines
from autocompress.policy.reading import read_line
from autocompress.policy.registry import field_names
from autocompress.results.trial import Trial
from autocompress.track.folder import RunFolder, plain, sync_folder
from autocompress.track.forms import FORMAT, NewerFormat, TimesForm, check_format
from autocompress.track.lock import RunLock


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal.

    Args:
        trial: what was finished.
        elapsed_s: seconds that the study had been running by then, pauses between a kill and a
            resume left out.
        finished: date and time, ISO 8601, UTC.
    """

    trial: Trial
    elapsed_s: float = 0.0
    finished: str = ""

    def as_dict(self) -> dict[str, Any]:
        """``Trial.as_dict`` with the two times added."""
        times = {"elapsed_s": self.elapsed_s, "finished": self.finished}
        return {"format": FORMAT, **self.trial.as_dict(), **times}


class Journal:
    """Appends finished trials; the only writer of its run. A ``Sink``.

    A line that was torn by a kill is cut off when the journal is opened: its trial had not
    finished. Readers need no lock: use ``read_entries``.

    Args:
        run: the run's folder; made if it is not there.
        lock: of the run, where it is held already.

    Raises:
        InputError: another process writes this run (its number is named), or the file is damaged.
    """

    def __init__(self, run: str | Path | RunFolder, lock: RunLock | None = None) -> None:
        self.folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
        self._lock = lock or RunLock(self.folder)
        self._own = lock is None
        try:
            new = not self.folder.trials.exists()
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._file = os.open(self.folder.trials, flags, 0o644)
            try:
                if new:
                    sync_folder(self.folder.root)
                cut_torn_line(self._file)
                self._entries = read_entries(self.folder)
            except BaseException:
                os.close(self._file)
                raise
        except BaseException:
            self._release()
            raise
        self._numbers = {entry.trial.number for entry in self._entries}
        self._before = max((entry.elapsed_s for entry in self._entries), default=0.0)
        self._opened = time.monotonic()
        self._closed = False

    def _release(self) -> None:
        if self._own:
            self._lock.release()

    @property
    def elapsed_s(self) -> float:
        """Seconds that this study has been running, over all its sessions."""
        return self._before + time.monotonic() - self._opened

    def record(self, trial: Trial) -> None:
        """Append a finished trial; returns when it is on disk.

        Raises:
            AutocompressError: the journal is closed, holds a trial of this number already, or was
                deleted.
            OSError: the disk refused; nothing of the trial stays in the file then.
        """
        if self._closed:
            raise AutocompressError(f"The journal of {self.folder.root} is closed.")
        if trial.number in self._numbers:
            raise AutocompressError(
                f"Trial numbers are unique in a run; {self.folder.trials} already holds trial "
                f"{trial.number}. Number new trials from {max(self._numbers) + 1}."
            )
        self._lock.check()
        finished = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = Entry(trial, round(self.elapsed_s, 3), finished)
        line = json.dumps(plain(entry.as_dict()), separators=(",", ":"), allow_nan=False)
        with naming(self.folder.trials):
            _append(self._file, line.encode() + b"\n")
        self._entries.append(entry)
        self._numbers.add(trial.number)

    def load(self) -> list[Trial]:
        """All finished trials, in the order in which they finished."""
        return [entry.trial for entry in self._entries]

    def entries(self) -> list[Entry]:
        """All finished trials with their times."""
        return list(self._entries)

    @property
    def last(self) -> Entry | None:
        """The trial that finished last, with its times."""
        return self._entries[-1] if self._entries else None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.load())

    def close(self) -> None:
        """Free the lock; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            os.close(self._file)
            self._release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_entries(run: str | Path | RunFolder) -> list[Entry]:
    """Read a journal without locking it, also while it is being written.

    Args:
        run: the run's folder.

    Returns:
        Finished trials in the order in which they finished; a torn last line is left out.

    Raises:
        InputError: it is no file, or a line in the middle is damaged.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    if kind(folder.trials) is None:
        return []
    entries: list[Entry] = []
    lines: dict[int, int] = {}
    for line, text in read_lines(folder.trials, "journal", _REMEDY[False]):
        if not text.strip():
            continue
        try:
            entry = _read_entry(text, f"{folder.trials}, line {line},")
        except NewerFormat:
            raise
        except AutocompressError as error:
            raise InputError(
                f"{folder.trials}, line {line}, is not a trial that can be read: {error} "
                f"{_REMEDY[isinstance(error, _FromElsewhere)]}"
            ) from None
        before = lines.setdefault(entry.trial.number, line)
        if before != line:
            raise InputError(
                f"{folder.trials}, line {line}, holds trial {entry.trial.number}, and so does line "
                f"{before}. Remove one of them; keep a copy of the file."
            )
        entries.append(entry)
    return entries


class _FromElsewhere(InputError):
    """A policy names a technique that is not installed here."""


_REMEDY = {
    False: "Remove that line to go on without it; keep a copy of the file.",
    True: "The run stays as it is.",
}


_TIMES = frozenset(TimesForm.model_fields)


def _read_entry(text: bytes, where: str) -> Entry:
    found = read_line(text)
    check_format(found.get("format"), where)
    layers = found.get("policy", {})
    layers = layers.get("layers") if isinstance(layers, dict) else None
    for layer in layers.values() if isinstance(layers, dict) else ():
        for key in layer if isinstance(layer, dict) else ():
            if key not in field_names():
                raise _FromElsewhere(
                    f"its policy has {key!r}, which no technique here knows. Install the package "
                    "that adds it, or the version of autocompress that made the run."
                )
    times = TimesForm.read({k: v for k, v in found.items() if k in _TIMES}, where="the trial")
    return Entry(Trial.from_dict(found), times.elapsed_s, times.finished)


def read_trials(run: str | Path | RunFolder) -> list[Trial]:
    """Finished trials of a run, without locking it."""
    return [entry.trial for entry in read_entries(run)]


def cut_torn_line(handle: int) -> None:
    """Truncate a file to its last newline; what is longer than a line stays, to be told of."""
    end = size = os.fstat(handle).st_size
    while end > 0:
        if size - end > LARGEST_FILE:
            return
        start = max(0, end - 65536)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)
        os.fsync(handle)


def _append(handle: int, data: bytes) -> None:
    """Write a whole line and wait for the disk; on failure leave nothing of it behind."""
    size = os.fstat(handle).st_size
    try:
        written = 0
        while written < len(data):
            written += os.write(handle, data[written:])
        os.fsync(handle)
    except BaseException:
        os.ftruncate(handle, size)
        raise

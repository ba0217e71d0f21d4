"""Answers a study over a connection: it sends files, and asks how they run here. Packed."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime

from autocompress.errors import AutocompressError
from autocompress.estimate.on_device import FileRunner, in_own_process
from autocompress.machine.energy import energy_meter
from autocompress.machine.messages import Ended, receive, send
from autocompress.machine.scratch import scratch_folder
from autocompress.measure.quiet import WAIT_VARIABLE
from autocompress.policy.files import disk_full

_TELL_EVERY_S = 1.0


class _NoRoom(Exception):
    """A file that was sent could not be stored, or the disk was full for one that is made here."""


class FileServer:
    """Keeps the study's files in a folder and answers until the connection ends.

    Args:
        folder: for the files.
        runner: the script that this is started by.
        read, write: the connection.
    """

    def __init__(self, folder: Path, runner: Path, read: BinaryIO, write: BinaryIO) -> None:
        self._folder, self._runner = folder, runner
        self._read, self._write = read, write

    def serve(self) -> None:
        """Answer every message with one; what fails is told, and the next one answered."""
        facts = FileRunner(1, 1).facts()
        meter = energy_meter()
        told = {
            "machine": facts["machine"],
            "version": onnxruntime.__version__,
            "no_energy": meter if isinstance(meter, str) else "",
        }
        send(self._write, {**told, "providers": onnxruntime.get_available_providers()})
        while True:
            try:
                asked, parts = receive(self._read)
            except Ended:
                return
            try:
                found, more = self._answer(asked, parts)
                send(self._write, {"found": found}, more)
            except BrokenPipeError:
                return
            except _NoRoom as error:
                folder = tempfile.gettempdir()
                send(self._write, {"no_room": str(error.__cause__), "folder": folder})
            except Exception as error:  # told to whoever asked
                kind = type(error).__name__
                ours = isinstance(error, AutocompressError)
                send(self._write, {"error": str(error), "kind": kind, "ours": ours})

    def _answer(self, asked: dict[str, Any], parts: Sequence[bytes]) -> tuple[Any, Sequence[bytes]]:
        if asked["do"] == "keep":
            try:
                self._store(self._folder / asked["digest"], asked["names"], parts)
            except OSError as error:
                raise _NoRoom from error
            return None, ()
        if asked["do"] == "forget":
            for file in (self._folder / asked["digest"]).iterdir():
                file.unlink()
            (self._folder / asked["digest"]).rmdir()
            return None, ()
        with self._alone():
            try:
                return self._carry_out(asked, parts)
            except OSError as error:
                if disk_full(error):
                    raise _NoRoom from error
                raise

    @staticmethod
    def _store(place: Path, names: Sequence[str], parts: Sequence[bytes]) -> None:
        place.mkdir()
        for name, data in zip(names, parts, strict=True):
            (place / Path(name).name).write_bytes(data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One study at a time runs files here, or what is left of one whose connection broke.

        Whoever has to wait is told so at once, again and again, and when it is over: no time limit
        counts that.
        """
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            yield
            return
        place = Path(tempfile.gettempdir()) / f"autocompress-device-{os.getuid()}.lock"
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            begin, told = time.monotonic(), -math.inf
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    now = time.monotonic()
                if now - told > _TELL_EVERY_S:
                    told = now
                    send(self._write, {"waiting_s": now - begin})
                time.sleep(0.1)
            if told >= begin:
                send(self._write, {"begins": True})
            yield
        finally:
            os.close(handle)

    def _carry_out(
        self, asked: Mapping[str, Any], parts: Sequence[bytes]
    ) -> tuple[Any, Sequence[bytes]]:
        """What was asked of files that are here, with the arrays that came along."""
        device, do = FileRunner(**asked["fields"]), asked["do"]
        (path, free), *_ = files = [
            (self._folder / digest / name, axes) for digest, name, axes in asked["files"]
        ]
        inputs = [np.load(io.BytesIO(part), allow_pickle=False) for part in parts]
        if do == "timings":
            os.environ[WAIT_VARIABLE] = str(asked["wait_s"])
            return device.timings(files, asked["plan"], asked["quiet"]), ()
        if do == "profile":
            return device.profile(path, free, inputs, asked["runs"]), ()
        if do == "run":
            return None, [_bytes(one) for one in device.run(path, free, inputs)]
        if do == "look":
            return device.look_ms(path, free), ()
        if do == "energy":
            return device.energy_mj(path, free), ()
        assert do == "memory", do
        return in_own_process(self._runner, json.dumps([asked["fields"], str(path), free])), ()


def serve(runner: Path) -> None:
    """Answer on standard input and output; what libraries print goes to standard error."""
    write = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with scratch_folder("files") as folder:
        FileServer(folder, runner, sys.stdin.buffer, write).serve()


def tell_memory(asked: str) -> None:
    """Print what ``FileRunner.memory`` finds; ``asked`` as for ``in_own_process``."""
    fields, path, free = json.loads(asked)
    print(FileRunner(**fields).memory(Path(path), free))


def _bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()

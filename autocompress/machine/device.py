"""Another device, which runs the study's files and tells what came of it."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import (
    DeviceChanged,
    DeviceLost,
    InputError,
    MeasurementError,
    TargetUnavailable,
)
from autocompress.machine.runner_files import RUNNER, packed_runner
from autocompress.machine.ssh import Address, Connection, Lacking, Lost, NoRoom, check_python
from autocompress.machine.waiting import (
    asked_to_end,
    outside_wait,
    pause,
    seconds_from,
    seconds_to_end,
)

WAIT_VARIABLE = "AUTOCOMPRESS_DEVICE_WAIT_S"
_PATIENCE_S = 1800.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _TELL_EVERY_S = 0.5, 15.0, 10.0
_KEPT = 16
"""Files that stay on the device: the uncompressed model is asked for again and again."""
_TRIES = 3
"""Of one request: a file may end the program there, over and over."""
_MACHINE = ("name", "cpu", "cores", "usable_cores", "memory_bytes", "system", "architecture")
_log = logging.getLogger(__name__)

Made = TypeVar("Made")
Array = NDArray[Any]
Fields = Mapping[str, Any]
"""Threads, batch, lengths and providers that files run with; plain data."""


class Device:
    """A device at an address. The connection is made when it is first needed.

    Where it breaks, the request waits until the device is there again, and begins anew.

    Args:
        url: ``ssh://user@host:port``.
        python: Python there.
        free_axes: of a file here, names of those axes that stand for the batch.
    """

    def __init__(self, url: str, python: str, free_axes: Callable[[Path], tuple[str, ...]]) -> None:
        check_python(python)
        self._address, self.url, self.python = Address.parse(url), url, python
        self._free_axes = free_axes
        self._connection: Connection | None = None
        self._hello: dict[str, Any] | None = None
        self._sent: dict[str, None] = {}
        self._process, self._in_vain = os.getpid(), False

    @property
    def machine(self) -> Mapping[str, Any]:
        """What of it does not change while it runs: name, processor, cores, memory, system."""
        told = self._told()["machine"]
        return {key: told[key] for key in _MACHINE if told.get(key) is not None}

    @property
    def version(self) -> str:
        """Of its runtime."""
        return str(self._told()["version"])

    @property
    def providers(self) -> list[str]:
        """Execution providers of its runtime."""
        return list(self._told()["providers"])

    @property
    def no_energy(self) -> str:
        """Why it tells no energy, or empty."""
        return str(self._told()["no_energy"])

    def _told(self) -> Mapping[str, Any]:
        """What it said of itself at first.

        Raises:
            TargetUnavailable: it cannot be reached.
        """
        if self._hello is None:
            self._connected()
        assert self._hello is not None
        return self._hello

    def ask(
        self,
        do: str,
        fields: Fields,
        paths: Sequence[Path],
        asked: Mapping[str, Any] | None = None,
        arrays: Sequence[Array] = (),
    ) -> tuple[Any, list[Array]]:
        """Have something done with files there.

        Args:
            do: ``timings``, ``profile``, ``run``, ``look``, ``memory`` or ``energy``.
            fields: that the files run with.
            paths: of the files here; they are sent where they are not there yet.
            asked: further arguments.
            arrays: that come along.

        Returns:
            Plain data, and arrays that came back.

        Raises:
            InputError: the device's runtime cannot take a file.
            MeasurementError: what was asked failed there.
            DeviceLost: it was not there again in time, or another one was; or its disk stayed full.
        """
        digests = [_digest(path) for path in paths]
        named = [
            (digest, path.name, self._free_axes(path))
            for digest, path in zip(digests, paths, strict=True)
        ]
        message = {"do": do, "fields": dict(fields), "files": named, **(asked or {})}
        sent, tries = [_bytes(array) for array in arrays], 0

        def once() -> tuple[Any, list[Array]]:
            self._send(digests, paths)
            found, parts = self._request(message, sent)
            return found, [np.load(io.BytesIO(p), allow_pickle=False) for p in parts]

        while True:
            try:
                return once()
            except NoRoom as full:  # the files may have room where what they write has none
                return self._again(str(full), once)
            except Lost as lost:
                tries += 1
                if tries == _TRIES:
                    raise MeasurementError(
                        f"{self.url} ended {tries} times while it did this ({do} of "
                        f"{', '.join(p.name for p in paths)}): {lost}. Look there whether its "
                        "memory is full."
                    ) from None
                self._again(str(lost), partial(self._send, digests, paths))

    def _connected(self) -> Connection:
        """The connection of this process; a forked one makes its own.

        Raises:
            TargetUnavailable: there was never one, and none can be made.
            Lost: there was one.
        """
        if self._process != os.getpid():
            self._process, self._connection = os.getpid(), None
        if self._connection is not None:
            return self._connection
        try:
            return self._connect()
        except Lost as lost:
            if self._hello is not None:
                raise
            if isinstance(lost, NoRoom):
                raise TargetUnavailable(f"The device {self.url} cannot be used: {lost}.") from None
            remedy = self._address.remedy(str(lost))
            raise TargetUnavailable(
                f"The device {self.url} cannot be reached: {lost}. {remedy}"
            ) from None

    def _connect(self) -> Connection:
        seconds_from(WAIT_VARIABLE, _PATIENCE_S)  # a wrong one is told now, not in a loss
        try:
            made = Connection(self._address, self.python, packed_runner(), RUNNER)
        except Lacking as lacking:
            if self._hello is not None:  # it had all that before: a folder is not mounted yet
                raise Lost(str(lacking)) from None
            raise TargetUnavailable(
                f"The device {self.url} cannot run files: {lacking}. Install it there "
                f"(`{self.python} -m pip install numpy onnxruntime`), or name another Python: "
                "`target: {python: /path/to/python3}`."
            ) from None
        self._hello = self._hello or made.hello
        if changed := self._changed(made.hello):
            made.close()
            raise DeviceChanged(changed)
        self._sent.clear()
        self._connection = made
        return made

    def _changed(self, hello: Mapping[str, Any]) -> str:
        """Why what says this now is not the device that was; empty where it is."""
        assert self._hello is not None
        if hello["version"] != self._hello["version"]:
            return (
                f"The device {self.url} came back with ONNX Runtime {hello['version']}, it had "
                f"{self._hello['version']} before. Install that and go on with --resume, or begin "
                "anew."
            )
        if other := other_machine(self._hello["machine"], hello["machine"]):
            return (
                f"At {self.url} another machine answers than before ({other}), whose times cannot "
                "stand beside those of the first. Put that back and go on with --resume, or begin "
                "anew."
            )
        return ""

    def _again(self, why: str, begin_anew: Callable[[], Made]) -> Made:
        """Wait until the device is there again and takes files.

        Args:
            why: it is waited for.
            begin_anew: connects, and sends what is needed; what it returns comes back.

        Raises:
            DeviceLost: it does not, within the time for it or the study's, or the study is to end.
        """
        limit = min(seconds_from(WAIT_VARIABLE, _PATIENCE_S), seconds_to_end())
        limit = 0.0 if self._in_vain else limit  # asked again: once is enough
        begin = time.monotonic()
        next_s, told, waited = _FIRST_PAUSE_S, -_TELL_EVERY_S, 0.0
        with outside_wait():
            while True:
                self._connection = None
                try:
                    made = begin_anew()
                except Lost as lost:
                    why = str(lost)
                else:
                    if waited:
                        _log.warning("the device %s is there again", self.url)
                    self._in_vain = False
                    return made
                waited = time.monotonic() - begin
                if waited >= limit or asked_to_end():
                    self._in_vain = True
                    raise DeviceLost(
                        f"The device {self.url} is lost: {why}. It stayed away for "
                        f"{waited:.0f} s. What was measured is kept: go on when it is there again, "
                        "a search with --resume."
                    )
                if waited - told >= _TELL_EVERY_S:
                    told = waited
                    text = "waiting for the device %s, which is lost (%s); waited for %.0f s so far"
                    _log.warning(text, self.url, why, waited)
                pause(min(next_s, max(0.0, limit - waited)))
                next_s = min(2 * next_s, _LONGEST_PAUSE_S)

    def _send(self, digests: Sequence[str], paths: Sequence[Path]) -> None:
        """See that files are there; the oldest of those that nobody asks for are forgotten."""
        self._connected()  # on a new connection nothing is there
        for digest, path in zip(digests, paths, strict=True):
            if digest in self._sent:
                del self._sent[digest]
            else:
                parts = [one.read_bytes() for one in _parts(path)]
                names = [one.name for one in _parts(path)]
                self._request({"do": "keep", "digest": digest, "names": names}, parts)
            self._sent[digest] = None
        for digest in list(self._sent)[: max(0, len(self._sent) - max(_KEPT, len(digests)))]:
            self._request({"do": "forget", "digest": digest})
            del self._sent[digest]

    def _request(self, data: Mapping[str, Any], parts: Sequence[bytes] = ()) -> tuple[Any, Any]:
        connection = self._connected()
        try:
            found, more = connection.request(data, parts)
            if "waiting_s" in found:
                self._wait_for_others(connection)
                found, more = connection.next()
        except Lost:
            raise
        except BaseException:  # a trial's time is over: the answer would be taken for the next one
            self._connection = None
            connection.close()
            raise
        if "no_room" in found:  # what it holds of ours goes with the connection
            self._connection = None
            connection.close()
            raise NoRoom(found["no_room"], found["folder"])
        if "error" in found:
            text = f"On {self.url}: {found['error']}"
            if found["kind"] == InputError.__name__:
                raise InputError(f"{text} (ONNX Runtime {self.version} there)")
            raise MeasurementError(text if found["ours"] else f"{text} ({found['kind']})")
        return found["found"], more

    def _wait_for_others(self, connection: Connection) -> None:
        """Wait until another study's request has ended there.

        Raises:
            DeviceLost: it does not, within half an hour or the study's time; or that is to end.
        """
        limit, told = min(_PATIENCE_S, seconds_to_end()), -_TELL_EVERY_S / 2
        with outside_wait():
            while "waiting_s" in (found := connection.next()[0]):
                waited = found["waiting_s"]
                if waited >= limit or asked_to_end():
                    raise DeviceLost(
                        f"The device {self.url} is not free: another study has been at work there "
                        f"for {waited:.0f} s. What was measured is kept: go on when it has ended, "
                        "a search with --resume."
                    )
                if waited - told >= _TELL_EVERY_S:
                    told = waited
                    text = "waiting for another study on %s; waited for %.0f s so far"
                    _log.info(text, self.url, waited)


def other_machine(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what a machine is not the one that was; empty where nothing tells them apart.

    Args:
        was, now: as ``Device.machine`` or ``machine_facts`` tell them; what one of them does not
            tell is not compared.
    """
    return ", ".join(
        f"{key} {was[key]!r}, now {now[key]!r}"
        for key in ("cpu", "cores", "architecture")
        if was.get(key) is not None and now.get(key) is not None and was[key] != now[key]
    )


def _parts(path: Path) -> list[Path]:
    """A file, and the weights beside it if they are stored apart."""
    beside = path.with_name(path.name + ".data")
    return [path, *([beside] if beside.is_file() else [])]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for part in _parts(path):
        digest.update(part.name.encode() + b"\0" + part.read_bytes())
    return digest.hexdigest()[:32]


def _bytes(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()

"""The study's end of the connection to a ``ServerApp`` in Flower's environment."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from autocompress.errors import AutocompressError
from autocompress.federated.messages import Unanswered, unpack
from autocompress.machine.scratch import scratch_folder

PLACE = "AUTOCOMPRESS_FEDERATED_PLACE"
"""Variable that tells the other process the folder in which the study listens."""
SOCKET, KEY = "socket", "key"
"""Files of that folder, which is this user's alone."""
_START_S = 180.0
_CLOSE_S = 30.0
_log = logging.getLogger(__name__)


class FlowerFailed(AutocompressError):
    """The process with Flower ended, or never answered."""


class Relayed:
    """A transport through a ``ServerApp``.

    Args:
        connection: to it.
        log: what its process prints.
        ttl_s: seconds for which Flower keeps a message.
        expected: clients to wait for at first.
    """

    def __init__(
        self, connection: Connection[Any, Any], log: Path, ttl_s: float, expected: int
    ) -> None:
        self.connection, self.log, self.ttl_s, self.expected = connection, log, ttl_s, expected
        self.answers: deque[tuple[int, bytes | Unanswered]] = deque()

    def clients(self) -> list[int]:
        """Numbers of the clients that can be reached now; at first, those that are expected."""
        end = time.monotonic() + _START_S
        found = self._clients()
        while len(found) < self.expected and time.monotonic() < end:
            time.sleep(0.5)
            found = self._clients()
        self.expected = 0
        return found

    def _clients(self) -> list[int]:
        self._tell({"do": "clients"})
        while True:
            head = self._next(_START_S)
            if head is None:
                raise FlowerFailed(f"Flower does not answer. {self._last_words()}")
            if "clients" in head:
                return [int(number) for number in head["clients"]]
            self._keep(head)

    def push(self, client: int, message: bytes) -> None:
        """Send a message."""
        asked = unpack(message)[0]
        about = {name: asked[name] for name in ("kind", "key")}
        self._tell({"do": "push", "client": client, **about, "ttl": self.ttl_s})
        self.connection.send_bytes(message)

    def pull(self, seconds: float) -> tuple[int, bytes | Unanswered] | None:
        """The next answer."""
        if not self.answers:
            head = self._next(seconds)
            if head is not None:
                self._keep(head)
        return self.answers.popleft() if self.answers else None

    def close(self) -> None:
        """Let the other side end."""
        try:
            self._tell({"do": "close"})
        except (OSError, FlowerFailed):
            return

    def _keep(self, head: Mapping[str, Any]) -> None:
        told: bytes | Unanswered
        if "error" in head:
            told = Unanswered(str(head["key"]), str(head["error"]))
        else:
            told = self.connection.recv_bytes()
        self.answers.append((int(head["client"]), told))

    def _tell(self, head: Mapping[str, Any]) -> None:
        try:
            self.connection.send_bytes(json.dumps(head).encode())
        except OSError as error:
            raise FlowerFailed(f"Flower has ended ({error}). {self._last_words()}") from None

    def _next(self, seconds: float) -> dict[str, Any] | None:
        try:
            if not self.connection.poll(seconds):
                return None
            found: dict[str, Any] = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise FlowerFailed(f"Flower has ended ({error}). {self._last_words()}") from None
        return found

    def _last_words(self) -> str:
        return last_words(self.log)


def last_words(log: Path) -> str:
    """The end of what a process printed."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return f"Its last words, of {log}: {' | '.join(text.strip().splitlines()[-4:])}"


@contextmanager
def relayed(
    command: Sequence[str],
    log: Path,
    *,
    ttl_s: float,
    expected: int = 1,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Relayed]:
    """Start a process of Flower's and wait until its ``ServerApp`` has come.

    Args:
        command: starts it; ``{place}`` stands for the folder in which the study listens.
        log: file that its output goes to.
        ttl_s, expected: see ``Relayed``.
        variables: more of its environment.

    Raises:
        FlowerFailed: the process ends before, or nothing comes.
    """
    key = secrets.token_bytes(32)
    log.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder("federated") as place, log.open("wb") as file:
        (place / KEY).write_bytes(key)
        with Listener(str(place / SOCKET), family="AF_UNIX", authkey=key) as listener:
            process = subprocess.Popen(
                [part.replace("{place}", str(place)) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, PLACE: str(place), **(variables or {})},
                start_new_session=True,  # Ctrl-C is the study's
            )
            try:
                with _accepted(listener, process, log) as connection:
                    transport = Relayed(connection, log, ttl_s, expected)
                    try:
                        yield transport
                    finally:
                        transport.close()
            finally:
                _ended(process)


@contextmanager
def _accepted(
    listener: Listener, process: subprocess.Popen[bytes], log: Path
) -> Iterator[Connection[Any, Any]]:
    """The connection that comes in, as long as the process may still bring it."""
    # no public way bounds the wait
    listener._listener._socket.settimeout(0.5)  # type: ignore[attr-defined]  # of no stub
    end = time.monotonic() + _START_S
    while True:
        try:
            connection = listener.accept()
        except TimeoutError:
            code = process.poll()
            if code not in (None, 0) or time.monotonic() > end:
                why = "does not come" if code is None else f"ended with code {code}"
                raise FlowerFailed(f"Flower {why}. {last_words(log)}") from None
            continue
        with connection:
            yield connection
        return


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process, and end it with all that it started where it does not end itself."""
    try:
        process.wait(_CLOSE_S)
    except subprocess.TimeoutExpired:
        _log.warning("Flower does not end by itself and is ended.")
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

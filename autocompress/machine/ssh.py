"""A program on another device, at the other end of a connection by the system's own ``ssh``.

One process of ``ssh`` carries all: the program itself, files and answers. So the device needs no
``sftp`` and no folder that stays, hosts and keys are those of the user's own configuration, and
nothing but a prompt is switched off.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from autocompress.errors import InputError
from autocompress.machine.messages import MARK, Ended, receive, send

COMMAND_VARIABLE = "AUTOCOMPRESS_SSH"
SCHEME = "ssh://"
_OPTIONS = (
    *("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "Compression=yes"),
    # a cable that was pulled is noticed within 15 seconds
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>\w[\w.-]*)@)?(?P<host>\w[\w.-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?/?"
)
_PYTHON = re.compile(r"[\w~/][\w~/.+-]*")
_NOT_STARTED = (126, 127)
"""With which a shell says that a program cannot be run, or is not there."""
_NEEDED = ("numpy", "onnxruntime")
_CODE = """
import contextlib, importlib.util, io, json, os, runpy, sys, tempfile, zipfile
def end(**told):
    text = json.dumps(told)
    sys.stdout.write({mark!r} + json.dumps([len(text)]) + chr(10) + text)
    sys.exit(0)
size = int(sys.stdin.buffer.readline())
data = sys.stdin.buffer.read(size)
lacks = [name for name in {needed!r} if importlib.util.find_spec(name) is None]
version = "%d.%d" % sys.version_info[:2]
if lacks or sys.version_info < (3, 10):
    end(lacks=lacks, python=version)
archive = zipfile.ZipFile(io.BytesIO(data))
scratch = {{}}
exec(archive.read("autocompress/machine/scratch.py").decode(), scratch)
with contextlib.ExitStack() as stack:
    try:
        folder = stack.enter_context(scratch["scratch_folder"]("device"))
        archive.extractall(folder)
    except OSError as error:
        end(no_room=str(error), folder=str(tempfile.tempdir))
    runner = os.path.join(folder, {runner!r})
    sys.argv = [runner, "--serve"]
    runpy.run_path(runner, run_name="__main__")
"""
"""What the device's Python is given on its command line; the zip file comes by standard input."""


class Lost(Exception):
    """A connection that could not be made, or broke; the text says why."""


class NoRoom(Lost):
    """The device takes no files: its folder for them is full, or cannot be written."""

    def __init__(self, why: str, folder: str) -> None:
        super().__init__(
            f"it takes no files in {folder} ({why}): make room there, or let its shell name "
            "another folder (TMPDIR)"
        )


class Lacking(Exception):
    """The device answers, but lacks what the program needs; the text says what."""


@dataclass(frozen=True)
class Address:
    """Of a device: ``ssh://user@host:port``; user and port may be left to ssh's configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            InputError: it is none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or not 0 < int(found["port"] or 22) < 65_536:
            raise InputError(f"A device reads `ssh://user@host:port`, got {text!r}.")
        port = found["port"]
        return cls(found["host"].strip("[]"), found["user"], int(port) if port else None)

    def remedy(self, why: str) -> str:
        """What to do where no connection is made.

        Args:
            why: what ``ssh`` said.
        """
        port = f"-p {self.port} " if self.port else ""
        place = port + (f"{self.user}@" if self.user else "") + self.host
        if "Host key verification failed" in why:
            known = f"[{self.host}]:{self.port}" if self.port else self.host
            return (
                f"Its key is not known here, or not the one of before: compare it, and log in once "
                f"(`ssh {place}`); an old one goes by `ssh-keygen -R '{known}'`."
            )
        if "Permission denied" in why:
            return f"`ssh` must get there without a question: `ssh-copy-id {place}`."
        return (
            f"See that it is on and that `ssh {place}` gets there without a question (a key, and a "
            "known host: `ssh-copy-id`)."
        )


def check_python(python: str) -> None:
    """Refuse what is no name or path of a program: the device's shell would read it.

    Raises:
        InputError: it is none.
    """
    if not _PYTHON.fullmatch(python):
        raise InputError(
            f"`target.python` is the name or path of Python on the device, got {python!r}."
        )


class Connection:
    """A program that answers on a device.

    Args:
        address: of the device.
        python: runs the program there.
        program: a zip file that holds it.
        runner: of these, the file to run.

    Attributes:
        hello: what the program said first.

    Raises:
        Lost: no connection.
        NoRoom: the device's folder for temporary files cannot be written.
        Lacking: the device's Python cannot run it.
    """

    def __init__(self, address: Address, python: str, program: bytes, runner: str) -> None:
        code = _CODE.format(needed=_NEEDED, mark=MARK.decode(), runner=runner)
        command = [
            *shlex.split(os.environ.get(COMMAND_VARIABLE, "ssh")),
            *_OPTIONS,
            *(("-p", str(address.port)) if address.port else ()),
            *(("-l", address.user) if address.user else ()),
            address.host,
            f"{python} -c {shlex.quote(code)}",
        ]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the connection)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C is for the study, which ends in order
            )
        except FileNotFoundError:
            raise Lost(f"there is no program {command[0]!r} here") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._write, self._read = self._process.stdin, self._process.stdout
        try:
            self._write.write(b"%d\n" % len(program) + program)
            self._write.flush()
            self.hello, _ = receive(self._read)
        except (OSError, Ended):
            said = self.close()
            if self._process.returncode in _NOT_STARTED:
                raise Lacking(f"{python} does not start there ({said})") from None
            raise Lost(said) from None
        except BaseException:  # Ctrl-C, or a trial's time is over: nobody else ends what connects
            self._process.kill()
            self.close()
            raise
        if "no_room" in self.hello:
            self.close()
            raise NoRoom(self.hello["no_room"], self.hello["folder"])
        if "lacks" in self.hello:
            self.close()
            raise Lacking(
                f"Python {self.hello['python']} there is older than 3.10"
                if not self.hello["lacks"]
                else f"{python} there has no {' and no '.join(self.hello['lacks'])}"
            )

    def request(
        self, data: Mapping[str, Any], parts: Sequence[bytes] = ()
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Send a message, and wait for the next one.

        Raises:
            Lost: the connection broke.
        """
        try:
            send(self._write, data, parts)
            return receive(self._read)
        except (OSError, Ended):
            raise Lost(self.close()) from None

    def next(self) -> tuple[dict[str, Any], list[bytes]]:
        """Wait for one more message.

        Raises:
            Lost: the connection broke.
        """
        try:
            return receive(self._read)
        except (OSError, Ended):
            raise Lost(self.close()) from None

    def close(self) -> str:
        """End it; the last line that ``ssh`` or the program left on standard error."""
        for stream in (self._write, self._read):
            with suppress(OSError):
                stream.close()
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._said.closed:
            return "the connection is closed"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        self._said.close()
        return lines[-1].strip().rstrip(".") if lines else f"ssh ended with code {code}"

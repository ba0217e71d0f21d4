"""A device of another place: an ssh server on this machine's loopback, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from autocompress.targets import get_target
from autocompress.targets.base import Target


@dataclass
class LoopbackDevice:
    """An ssh server that can be stopped and started again.

    Args:
        folder: of its keys and configuration.
        sshd: the program.
        port: on the loopback.
    """

    folder: Path
    sshd: str
    port: int
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the device, as a study names it."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def ssh(self) -> str:
        """The command that gets there without the user's own configuration."""
        return f"ssh -F {self.folder / 'config'}"

    def start(self) -> None:
        """Let it be reached."""
        log = (self.folder / "log").open("ab")
        command = [self.sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 20
        while time.monotonic() < end and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        pytest.fail(f"the ssh server did not start: {(self.folder / 'log').read_text()}")

    def cut(self) -> int:
        """Kill every connection that stands; how many processes of the server that were."""
        assert self._process is not None
        held = psutil.Process(self._process.pid).children()
        for process in held:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return len(held)

    def stop(self) -> None:
        """Take it off, connections and all."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)  # nobody gets in meanwhile
            self.cut()
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def loopback_device(folder: Path) -> Iterator[LoopbackDevice]:
    """Start a server; skips where none is installed."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("there is no ssh server here (package openssh-server)")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("host", "key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'key.pub'}\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    (folder / "config").write_text(
        f"Host *\n  IdentityFile {folder / 'key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known'}\n  StrictHostKeyChecking accept-new\n"
    )
    if os.getuid() == 0:  # where the server keeps nothing, and will not start without
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    device = LoopbackDevice(folder, sshd, port)
    device.start()
    try:
        yield device
    finally:
        device.stop()


def other_python(folder: Path, lines: str) -> Path:
    """This Python, with some code that it runs before all else, and the folder's programs."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(lines)
    script = folder / "python3"
    script.write_text(
        f'#!/bin/sh\nPATH={folder}:$PATH PYTHONPATH={folder} exec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    return script


def there(board: LoopbackDevice, **more: Any) -> Target:
    """Files run on the board, in this Python unless another one is named."""
    return get_target({"device": board.url, "python": sys.executable, **more})

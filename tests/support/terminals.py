"""Commands run on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path


def on_a_terminal(
    command: list[str], columns: int, variables: dict[str, str], folder: Path | None = None
) -> tuple[int, bytes]:
    """Run a command of ours on a terminal.

    Args:
        command: after ``autocompress``.
        columns: of the terminal.
        variables: over those of the tests.
        folder: to run in.

    Returns:
        Exit code, and what the terminal was sent.
    """
    own, others = pty.openpty()
    fcntl.ioctl(others, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "autocompress", *command],
        stdin=others,
        stdout=others,
        stderr=others,
        cwd=folder,
        env={**environment, **variables, "COLUMNS": str(columns)},
    ) as process:
        os.close(others)
        said = b""
        while True:
            try:
                more = os.read(own, 65536)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            said += more
    os.close(own)
    return process.returncode, said

"""A server that ends with the process that started it, however that ends.

Run as ``python -m autocompress.mlflow.guard COMMAND...`` in a process group of its own, with a pipe
as its input: the pipe closes when its other end's process is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run a command until it ends or the input does; returns its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_follow, daemon=True).start()
    return child.wait()


def _follow() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

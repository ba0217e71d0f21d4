"""Other processes that time, compute or pause, as programs that are told what to do by a line."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

TIMING = """
import sys
from autocompress.machine.lock import timing_lock
print("waiting", flush=True)
with timing_lock():
    print("holding", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""
COMPUTING = """
from autocompress.machine.lock import after_timing
print("waiting", flush=True)
after_timing()
print("holding", flush=True)
"""

BUSY = """
import sys, threading
from autocompress.machine.lock import pause_anywhere
count = 0
def answer():
    for line in sys.stdin:
        print(f"count {count}", flush=True)
threading.Thread(target=answer, daemon=True).start()
pause_anywhere()
print("waiting", flush=True)
while True:
    count += 1
"""


class Other:
    """Another process that times until it is told to let go, or that computes after timing."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "search", "quickstart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.strip())

    def reaches(self, word: str, seconds: float = 20.0) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if word in self.said:
                return True
            time.sleep(0.01)
        return False

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

"""Ends what a Ray of one's own leaves behind; run as a script, beside the process that has it.

Ray's agents notice quickly that their cluster has died, but then try for a minute to tell it so.
They are known by a variable that only processes of this Ray have. Linux alone shows it.
"""

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_LOOK_EVERY_S = 0.5
_GRACE_S, _TRIES = 1.0, 4


def left(mark: bytes) -> list[int]:
    """Processes with a mark among their variables, this one left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # others' processes, and those that have just ended
            if mark in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def main() -> None:
    """Wait until standard input is closed, or whoever started this has died."""
    parent = os.getppid()
    while os.getppid() == parent and not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        pass  # a forked process may hold the other end on
    for _ in range(_TRIES):
        time.sleep(_GRACE_S)  # most end by themselves
        for process in left(sys.argv[1].encode()):
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()

"""Ends what a Ray of one's own leaves behind; run as a script, beside the process that has it.

Ray's agents notice quickly that their cluster has died, but then try for a minute to tell it so.
Ray's first processes are known by a variable; others overwrite theirs, and are known as children of
those. Linux alone shows both.
"""

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_LOOK_EVERY_S = 1.0
_GRACE_S, _TRIES = 1.0, 4

Known = dict[int, str]
"""Number of a process to when it was started: numbers are given again."""


def look(mark: bytes) -> Known:
    """Processes with a mark among their variables, and their children; this one left out."""
    parents: dict[int, int] = {}
    started: Known = {}
    marked: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # others' processes, and those that have just ended
            number = int(folder.name)
            # the name in parentheses may hold anything
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parents[number], started[number] = int(fields[1]), fields[19]
            if mark in (folder / "environ").read_bytes():
                marked.add(number)
    size = 0
    while size < len(marked):
        size = len(marked)
        marked |= {number for number, parent in parents.items() if parent in marked}
    return {number: started[number] for number in marked - {os.getpid()}}


def alive(known: Known) -> list[int]:
    """Of some processes, those that still run."""
    found = []
    for number, started in known.items():
        with suppress(OSError):
            stat = Path(f"/proc/{number}/stat").read_text(errors="replace")
            if stat.rpartition(")")[2].split()[19] == started:
                found.append(number)
    return found


def main() -> None:
    """Wait until standard input is closed, or whoever started this has died."""
    mark, parent = sys.argv[1].encode(), os.getppid()
    known: Known = {}
    closed = False
    while os.getppid() == parent and not closed:
        known = look(mark)
        # a forked process may hold the other end on: the parent counts, too
        closed = bool(select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0])
    for _ in range(_TRIES):
        time.sleep(_GRACE_S)  # most end by themselves
        known |= look(mark)
        for number in alive(known):
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    main()

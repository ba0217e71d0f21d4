"""Worker processes of one machine: how they are started, and which signals they leave alone.

A terminal that goes, ``timeout``, systemd and cluster schedulers ask every process of a study to
end. The study answers; its workers, and what they are forked from, go on until it tells them.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if sys.platform == "linux" or TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext as _Context
    from multiprocessing.context import ForkServerProcess as _Process
else:
    from multiprocessing.context import SpawnContext as _Context
    from multiprocessing.context import SpawnProcess as _Process

_ENDS = ("SIGINT", "SIGTERM", "SIGHUP")


class Worker(_Process):
    """A process that does not answer requests to end, and is therefore killed."""

    def terminate(self) -> None:
        """End it now."""
        self.kill()


class Workers(_Context):
    """Starts workers: forked on Linux (from what ``imports`` loads), fresh elsewhere."""

    Process = Worker


def leave_ends_to_the_study() -> None:
    """Do nothing when this process is asked to end.

    A handler and not ``SIG_IGN``: programs that a user's code starts would inherit that.
    """
    for name in _ENDS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _nothing)


def _nothing(number: int, frame: object) -> None:
    pass

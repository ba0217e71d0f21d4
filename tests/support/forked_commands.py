"""Commands of ours in processes forked from one that has imported what they need.

A short command spends most of its time on importing torch and scikit-learn. The process that has
done so once runs nothing itself; each command is a process of its own, as ``python -m`` makes it,
but for three things: what ``MODULES`` import is there without being asked for; texts have the
same hashes in all of them, so that sets are in the same order; and MLflow's databases begin as
copies of the first one. A test of any of them needs new processes: give them a ``PYTHONHASHSEED``.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

MODULES = (
    *("torch._dynamo", "torchvision", "scipy.stats", "scipy.optimize", "sklearn.datasets"),
    *("autocompress.cli", "autocompress.run.session", "autocompress.run.replay"),
    *("autocompress.run.feasibility", "autocompress.commands.searching"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
)
"""Nothing here starts a thread, which a fork would leave dead. ONNX Runtime does."""
_READ_EARLY = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "TORCH_", "LD_", "HF_")
"""Beginnings of variables that only a new process heeds."""


class ForkedCommand:
    """One command that runs, with what tests use of ``subprocess.Popen``.

    Args:
        pid: of its process, which leads a group of its own.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, as ``subprocess`` tells it; none while it runs."""
        if self.returncode is None:
            _parent().listen(0.0)
            self.returncode = _parent().ended.pop(self.pid, None)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, within so many seconds.
        """
        end = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            _parent().listen(0.05)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To its process, if that still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, and that is not told yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self.send_signal(signal.SIGKILL)


class _Parent:
    """The process that has imported.

    Attributes:
        ended: exit statuses that nobody has asked for yet, by process.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="commands-")
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout.fileno()
        self._text = b""
        self._pids: list[int] = []
        self.ended: dict[int, int] = {}
        self.environment = early(os.environ)
        atexit.register(self._process.kill)

    def start(self, ask: dict[str, Any]) -> int:
        self._asks.write(json.dumps(ask).encode() + b"\n")
        self._asks.flush()
        while not self._pids:
            self.listen(1.0)
        return self._pids.pop()

    def listen(self, seconds: float) -> None:
        """Take in what it tells, waiting for so long at most."""
        if not select.select([self._answers], [], [], seconds)[0]:
            return
        told = os.read(self._answers, 65536)
        assert told, "the process that runs commands has ended"
        *lines, self._text = (self._text + told).split(b"\n")
        for line in lines:
            pid, status = json.loads(line)
            if status is None:
                self._pids.append(pid)
            else:
                self.ended[pid] = status


@cache
def _parent() -> _Parent:
    return _Parent()


def early(variables: Mapping[str, str]) -> dict[str, str]:
    """Those variables that a forked command takes over as they were."""
    return {k: v for k, v in variables.items() if k.startswith(_READ_EARLY)}


def can_run(environment: dict[str, str]) -> bool:
    """Whether a forked command would heed all variables; and this is no system without forks."""
    return hasattr(os, "fork") and _parent().environment == early(environment)


def start(
    arguments: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path
) -> ForkedCommand:
    """Start a command.

    Args:
        arguments: after the program's name.
        cwd: where it runs.
        environment: its variables.
        out, err: files for what it prints; they may be the same.
    """
    ask = {"arguments": arguments, "cwd": str(cwd), "environment": environment}
    return ForkedCommand(_parent().start({**ask, "out": str(out), "err": str(err)}))


def _serve() -> dict[str, Any]:
    """Fork for each line on standard input, and tell when commands end.

    Returns:
        What to run, in the new process.
    """
    running: set[int] = set()
    with os.fdopen(0, "rb", buffering=0, closefd=False) as asks:
        while True:
            if select.select([asks], [], [], 0.02 if running else None)[0]:
                line = asks.readline()
                if not line:
                    raise SystemExit
                pid = os.fork()
                if pid == 0:
                    return dict(json.loads(line))
                running.add(pid)
                print(json.dumps([pid, None]), flush=True)
            for pid in list(running):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    running.discard(pid)
                    print(json.dumps([pid, os.waitstatus_to_exitcode(status)]), flush=True)


def _become(ask: dict[str, Any]) -> None:
    """Be the process that ``python -m autocompress`` would be."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(ask["cwd"])
    os.environ.clear()
    os.environ.update(ask["environment"])
    writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path in ((0, os.devnull), (1, ask["out"]), (2, ask["err"])):
        os.dup2(os.open(path, writing if number else os.O_RDONLY), number)
    import_module("numpy").random.seed()  # a new process draws numbers of its own; random does so
    sys.argv[1:] = ask["arguments"]
    sys.path[0] = ask["cwd"]
    code: object = 0
    try:
        runpy.run_module("autocompress", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # what Python does at its end, but for taking all modules apart, which takes a second
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _prepare(folder: Path) -> None:
    """Import all that commands need; MLflow's first database is kept in a folder."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true"}  # which the import heeds already
    for name in MODULES:
        import_module(name)
    from mlflow.store.db import utils
    from mlflow_databases import begun_as_copy

    utils._initialize_tables = begun_as_copy(folder / "first.db")
    gc.freeze()


if __name__ == "__main__":
    _prepare(Path(sys.argv[1]))
    _become(_serve())

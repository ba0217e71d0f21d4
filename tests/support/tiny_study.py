"""A study of a digits classifier that takes seconds, and the commands run on it."""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import forked_commands
import yaml
from forked_commands import ForkedCommand

STUDY: dict[str, Any] = {
    "name": "tiny",
    "model": {"factory": "autocompress.workloads.models:digits_resnet", "args": {"width": 12}},
    "baseline": {"schedule": {"epochs": 4, "batch_size": 64, "lr": 0.1}},
    "data": {"factory": "autocompress.workloads.data:digits"},
    "space": "joint",
    "budget": ["macs<=0.5x", "latency<=3x"],
    "search": {"trials": 6, "timeout_s": None, "candidates": 2, "screen_images": 64},
    "recovery": {
        "epochs": 1,
        "candidates": 1,
        "schedule": {"batch_size": 64, "lr": 0.02},
    },
}
FEW: dict[str, Any] = {"rules": [{"match": "*", "prune_ratio": [0, 0.5]}]}
"""A space that times few kernels and builds fast, where what is searched is not the point."""
PATIENCE_S = 300.0


def study_of(trials: int = 6, **more: Any) -> dict[str, Any]:
    """The study without recovery, with so many trials and other sections."""
    study = {**STUDY, "recovery": {"epochs": 0}, **more}
    return {**study, "search": {**STUDY["search"], "trials": trials, **more.get("search", {})}}


def until(true: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Wait for something; whether it came within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def trials_in(run: Path) -> int:
    """Lines of a run's journal."""
    path = run / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def environment(place: Path) -> dict[str, str]:
    """Variables of a command run in a folder with a cache of its own."""
    return {**os.environ, "AUTOCOMPRESS_CACHE": str(place / "cache"), "COLUMNS": "200"}


_KEPT = ("baselines", "latency", "banks")
"""Of a cache: what is trained, timed and computed; not which functions somebody has run."""


@cache
def _found() -> Path:
    """What searches of this process of tests have left in their caches."""
    folder = tempfile.mkdtemp(prefix="caches-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _lend(place: Path) -> None:
    """Give a folder without a cache what an earlier search has trained and timed."""
    if not (place / "cache").exists():
        shutil.copytree(_found(), place / "cache")


def _keep(place: Path) -> None:
    """Keep what a search has left for others."""
    for name in _KEPT:
        if not (_found() / name).exists() and (place / "cache" / name).is_dir():
            shutil.copytree(place / "cache" / name, _found() / name)


def heed_signals() -> None:
    """For a new process: whoever runs the tests may ignore some, which is inherited."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(
    folder: Path,
    study: dict[str, Any],
    *more: str,
    command: str = "search",
    through: Sequence[str] = (),
    cold: bool = False,
) -> subprocess.Popen[bytes] | ForkedCommand:
    """A command on a study, in a session of its own; what it prints goes to ``log``.

    Args:
        folder: where it runs.
        study: that it is given as a file.
        more: options.
        command: of autocompress.
        through: a program that starts it, such as ``nohup``.
        cold: with an empty cache, so that its model is trained before all else.
    """
    if not cold:
        _lend(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(study))
    asked, variables, log = [command, "tiny.yaml", *more], environment(folder), folder / "log"
    if not through and forked_commands.can_run(variables):
        return forked_commands.start(asked, folder, variables, log, log)
    with log.open("w") as written:
        return subprocess.Popen(
            [*through, sys.executable, "-m", "autocompress", *asked],
            cwd=folder,
            env=variables,
            stdout=written,
            stderr=written,
            start_new_session=True,
            preexec_fn=heed_signals,
        )


def call(
    place: Path, text: str, *, check: int | None = 0, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours as a user would; its cache is what earlier searches have left."""
    _lend(place)
    arguments, variables = shlex.split(text), environment(place)
    if forked_commands.can_run(variables):
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            process = forked_commands.start(arguments, place, variables, out, err)
            try:
                code = process.wait(timeout_s)
            finally:
                process.kill()
            done = subprocess.CompletedProcess(text, code, out.read_text(), err.read_text())
    else:
        done = subprocess.run(
            [sys.executable, "-m", "autocompress", *arguments],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
            env=variables,
            timeout=timeout_s,
        )
    if arguments[0] == "search" and not done.returncode:
        _keep(place)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done

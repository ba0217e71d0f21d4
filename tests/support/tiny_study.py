"""A study of a digits classifier that takes seconds, and the commands run on it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

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
) -> subprocess.Popen[bytes]:
    """A command on a study, in a session of its own; what it prints goes to ``log``.

    Args:
        folder: where it runs.
        study: that it is given as a file.
        more: options.
        command: of autocompress.
        through: a program that starts it, such as ``nohup``.
    """
    (folder / "tiny.yaml").write_text(yaml.safe_dump(study))
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [*through, sys.executable, "-m", "autocompress", command, "tiny.yaml", *more],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=heed_signals,
        )


def call(
    place: Path, text: str, *, check: int | None = 0, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "autocompress", *shlex.split(text)],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env=environment(place),
        timeout=timeout_s,
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done

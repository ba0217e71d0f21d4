"""Faults at random moments of a study: what survives, what is lost, what is done twice.

A study of a small network is begun, struck once, and resumed until it has ended. Its processes are
known by a variable that only they have, and as children of those that have it (Ray's processes
overwrite their variables). Printed per fault: how often the study ended with an
answer; finished trials that were gone afterwards; policies that were evaluated twice at the same
phase; processes left eight seconds later; seconds that it took longer than an undisturbed one
(median).

    python benchmarks/faults.py --json [--times 20] [--workers 1 2] [--fault kill_driver ...]
    python benchmarks/faults.py --json --executor ray --workers 2 --fault kill_driver kill_worker
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from autocompress.results.trial import TrialState
from autocompress.run.study import load_study
from autocompress.track.journal import read_trials

MARK = "AUTOCOMPRESS_FAULTS"
PATIENCE_S = 900.0
STUDY = load_study("quickstart").changed(
    name="faults",
    model={"args": {"width": 8}},
    budget=["macs<=0.7x"],
    search={"trials": 6, "timeout_s": None},
    recovery={"epochs": 1, "candidates": 1},
)


@dataclass
class Study:
    """One study, in a folder of its own.

    Args:
        folder: empty; its cache is shared with others.
        workers: of the study.
        tracking: of the study.
        limit: bytes that a file of its first session may have; a disk that is full.
        executor: of the study.
    """

    folder: Path
    workers: int
    tracking: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    executor: str = "local"
    known: set[psutil.Process] = field(default_factory=set)
    process: subprocess.Popen[bytes] | None = None

    @property
    def run(self) -> Path:
        """Its run's folder."""
        return self.folder / "run"

    def begin(self, *more: str) -> subprocess.Popen[bytes]:
        """Start or resume it."""
        own = STUDY.changed(workers=self.workers, tracking=self.tracking, executor=self.executor)
        (self.folder / "study.json").write_text(own.model_dump_json())
        limit, self.limit = self.limit, None  # by the next session somebody has made room
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "autocompress",
                    "search",
                    "study.json",
                    "--out",
                    "run",
                    *more,
                ],
                cwd=self.folder,
                env={**os.environ, MARK: str(self.folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=None if limit is None else lambda: _full_at(limit),
            )
        return self.process

    def processes(self) -> list[psutil.Process]:
        """All that it has started, as far as it was looked at, and that still run."""
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if one.environ().get(MARK) == str(self.folder):
                    self.known |= {one, *one.children(recursive=True)}
        found = []
        for one in self.known:
            with contextlib.suppress(psutil.Error):
                if one.is_running() and one.status() != "zombie":
                    found.append(one)
        return sorted(found, key=lambda one: one.pid)

    def finished(self) -> Counter[tuple[str, str]]:
        """Complete trials by policy and phase."""
        if not (self.run / "trials.jsonl").is_file():
            return Counter()
        return Counter(
            (trial.policy.digest, str(trial.phase))
            for trial in read_trials(self.run)
            if trial.state is TrialState.COMPLETE
        )

    def end(self) -> bool:
        """Wait for it, and resume it as long as that helps; whether it has an answer."""
        assert self.process is not None
        for attempt in range(4):
            if attempt:
                self.begin(*(["--resume"] if (self.run / "study.yaml").is_file() else []))
            self.process.wait(PATIENCE_S)
            if self.process.returncode == 0 and (self.run / "recipes" / "best.yaml").is_file():
                return True
        return False


def _full_at(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _signal(number: int) -> Callable[[Study, random.Random], None]:
    def strike(study: Study, draw: random.Random) -> None:
        assert study.process is not None
        with contextlib.suppress(ProcessLookupError):
            study.process.send_signal(number)

    return strike


def _signal_all(number: int) -> Callable[[Study, random.Random], None]:
    """To its whole group of processes, as terminals, ``timeout`` and schedulers do."""

    def strike(study: Study, draw: random.Random) -> None:
        assert study.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(study.process.pid, number)

    return strike


def kill_worker(study: Study, draw: random.Random) -> None:
    """One of the processes that the driver started."""
    assert study.process is not None
    others = [p for p in study.processes() if p.pid != study.process.pid]
    if others:
        with contextlib.suppress(psutil.NoSuchProcess):
            draw.choice(others).kill()


def stop_for_a_while(study: Study, draw: random.Random) -> None:
    """All of its processes, for ten seconds: a laptop that sleeps."""
    stopped = study.processes()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for one in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)
        time.sleep(10.0 if number == signal.SIGSTOP else 0.0)


def delete_lock(study: Study, draw: random.Random) -> None:
    """The lock file of the run."""
    (study.run / "trials.lock").unlink(missing_ok=True)


def cut_journal(study: Study, draw: random.Random) -> None:
    """Killed in the middle of writing: the last line is half there."""
    _signal(signal.SIGKILL)(study, draw)
    assert study.process is not None
    study.process.wait()
    path = study.run / "trials.jsonl"
    if path.is_file() and path.stat().st_size > 40:
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        path.write_bytes(whole + lines[-1][: draw.randrange(1, len(lines[-1]) - 1)])


def nothing(study: Study, draw: random.Random) -> None:
    """For faults that are there from the beginning."""


FAULTS: dict[str, Callable[[Study, random.Random], None]] = {
    "kill_driver": _signal(signal.SIGKILL),
    "terminate_driver": _signal(signal.SIGTERM),
    "hang_up": _signal(signal.SIGHUP),
    "interrupt": _signal(signal.SIGINT),
    "terminate_group": _signal_all(signal.SIGTERM),
    "hang_up_group": _signal_all(signal.SIGHUP),
    "kill_worker": kill_worker,
    "stop_for_a_while": stop_for_a_while,
    "delete_lock": delete_lock,
    "cut_journal": cut_journal,
    "full_disk": nothing,
    "silent_mlflow": nothing,
}


def struck(name: str, study: Study, usual_s: float, draw: random.Random) -> dict[str, Any]:
    """What came of one study."""
    server = socket.socket()
    if name == "silent_mlflow":  # it accepts, and never answers
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        study.tracking = {"uri": f"http://127.0.0.1:{server.getsockname()[1]}"}
    if name == "full_disk":
        study.limit = draw.randrange(2_000, 60_000)
    begin = time.monotonic()
    process = study.begin()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(0.05, 0.95) * usual_s)
    before = study.finished()
    study.processes()  # to know them when they have lost their parent
    FAULTS[name](study, draw)
    survived = study.end()
    took = time.monotonic() - begin
    server.close()
    after = study.finished()
    deadline = time.monotonic() + 8.0
    while (left := study.processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return {
        "survived": survived,
        "lost": sum((before - after).values()),
        "twice": sum(n - 1 for n in after.values()),
        "left": len(left),
        "delayed_s": took - usual_s,
    }


def main() -> None:
    """An undisturbed study for each number of workers, then the faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--times", type=int, default=5, help="of each fault")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--executor", default="local", choices=["local", "ray", "ray_tune"])
    parser.add_argument("--fault", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, rows = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as place:
        os.environ["AUTOCOMPRESS_CACHE"] = str(Path(place) / "cache")
        usual: dict[int, float] = {}
        for workers in given.workers:
            for attempt in ("fill the cache", "undisturbed"):
                study = Study(Path(tempfile.mkdtemp(dir=place)), workers, executor=given.executor)
                begin = time.monotonic()
                study.begin()
                assert study.end(), (attempt, (study.folder / "log").read_text())
                usual[workers] = time.monotonic() - begin
        for name in given.fault:
            found = []
            for i in range(given.times):
                workers = given.workers[i % len(given.workers)]
                study = Study(Path(tempfile.mkdtemp(dir=place)), workers, executor=given.executor)
                found.append(struck(name, study, usual[workers], draw))
            rows.append(
                {
                    "fault": name,
                    "times": len(found),
                    **{
                        key: sum(one[key] for one in found)
                        for key in ("survived", "lost", "twice", "left")
                    },
                    "delayed_s": statistics.median(one["delayed_s"] for one in found),
                }
            )
            if not given.json:
                print(json.dumps(rows[-1]), flush=True)
    if given.json:
        print(json.dumps({"undisturbed_s": usual, "faults": rows}))


if __name__ == "__main__":
    main()

"""Trials a minute with one worker and with several, in one run.

A study of untrained trials (ResNet-20 by default, ``sampler: random``, 0.95x), each number of
workers in turn. Printed: trials a minute after the first, seconds until the first is finished,
seconds of a trial, and the peak memory of the study's process and of its workers.

    OMP_NUM_THREADS=1 python benchmarks/workers.py --json [--workers 1 2] [--trials 24]

Run it while nothing else runs. Data and weights are found through AUTOCOMPRESS_DATA and
AUTOCOMPRESS_WEIGHTS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from autocompress.run.study import load_study
from autocompress.track.journal import Entry, read_entries


def peaks(process: psutil.Process, found: dict[int, float]) -> None:
    """Keep the largest resident memory of a process and of its children, in MB."""
    for one in [process, *process.children(recursive=True)]:
        try:
            found[one.pid] = max(found.get(one.pid, 0.0), one.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            continue


def searched(run: Path) -> list[Entry]:
    """Evaluated trials of the search so far."""
    if not (run / "trials.jsonl").is_file():
        return []
    done = [e for e in read_entries(run) if e.trial.phase.kind == "search"]
    return [e for e in done if e.trial.state in ("COMPLETE", "FAILED")]


def measured(study: str, workers: int, trials: int, executor: str) -> dict[str, Any]:
    """One search from the command line, watched from outside."""
    config = load_study(study).changed(
        search={"sampler": "random", "trials": trials, "timeout_s": None, "random_references": 0},
        recovery={"epochs": 0},
        budget=["latency<=0.95x"],
        tracking={"mlflow": False},
        workers=workers,
        executor=executor,
    )
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "workers.json", Path(folder) / "run"
        path.write_text(config.model_dump_json())
        command = [sys.executable, "-m", "autocompress", "search", str(path), "--out", str(run)]
        memory: dict[int, float] = {}
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            watched = psutil.Process(process.pid)
            while process.poll() is None and len(done := searched(run)) < trials:
                peaks(watched, memory)
                time.sleep(0.5)
            assert process.stderr is not None
            if process.returncode not in (None, 0, 1):
                raise SystemExit(process.stderr.read().decode())
            process.kill()  # what follows the search is not looked at
    times = [e.elapsed_s for e in done]
    own = memory.pop(process.pid, 0.0)
    return {
        "workers": workers,
        "trials": len(done),
        "trials_per_minute": 60 * (len(times) - 1) / (times[-1] - times[0]),
        "first_s": times[0],
        "trial_s": statistics.median(e.trial.seconds for e in done),
        "driver_mb": own,
        "workers_mb": sorted(round(mb) for mb in memory.values() if mb > 200),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--study", default="cifar10_resnet20")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 1, 2])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--executor", default="local")
    args = parser.parse_args()
    rows = []
    for workers in args.workers:
        rows.append(measured(args.study, workers, args.trials, args.executor))
        if not args.json:
            print(json.dumps(rows[-1]), flush=True)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()

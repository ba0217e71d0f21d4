"""The leaderboard: every tool on the same weights, images, machine and minutes.

    python benchmarks/leaderboard.py --network resnet20 --latency 0.5x --minutes 3 [--peer NAME ...]

Each tool runs in a process of its own, peers in the environment that ``make peers-env`` builds
(``--peers-python``). It has the train and val splits, the same wall time for everything, and gives
an ONNX file, which is timed here beside the uncompressed one (ONNX Runtime, one thread, batch 1)
and looked at once on test. Rows are kept in ``--rows``; those that are there are not run again
without ``--again``. ``--page FILE`` writes the tables of all rows into a page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contest.page import OURS, written
from contest.rows import Row, append, key_of, load, packed
from contest.task import NETWORKS, Task

from autocompress.measure.latency import paired_timing
from autocompress.measure.sampling import Plan
from autocompress.quality.answers import file_answers
from autocompress.quality.score import score
from autocompress.targets.base import Target
from autocompress.targets.lengths import drawn_inputs
from autocompress.targets.profile import KernelClass

HERE = Path(__file__).parent
OWN = (OURS, "uniform_int8")
PEERS = (
    *OWN,
    *(f"torch_pruning_{kind}" for kind in ("l1", "taylor", "group")),
    "modelopt_fastnas",
    *("nncf_int8", "mct_mixed", "mct_pruning", "fasterai", "ridge", "optuna", "ort_int8"),
)
_OVER_S = 40.0
"""A tool that is not done so long after its time is stopped: the end of a study is 20 s or 5 %."""


def kernels(target: Target, path: Path) -> dict[str, int]:
    """Operators that multiply, and how many of them multiply integers, as the profile shows it."""
    session = target.open(path)
    try:
        profile = session.profile(drawn_inputs(session, target.config, 0)[0])
    finally:
        session.close()
    kinds = [target.classify(node) for node in profile.nodes]
    integer = sum(kind is KernelClass.INTEGER for kind in kinds)
    return {"integer": integer, "multiplying": sum(kind.multiplies for kind in kinds)}


def judged(task: Task, path: Path) -> dict[str, Any]:
    """A tool's file: its time beside the uncompressed one, its kernels, its accuracy."""
    plan = Plan(precision=0.01, max_seconds=12.0)
    timing = paired_timing(task.target, path, task.base, plan=plan)
    test = score(file_answers(task.target, path, task.data.test, threads=1))
    assert test.correct is not None
    return {
        "ratio": round(timing.ratio, 4),
        "ratio_95": [round(timing.ratio_low, 4), round(timing.ratio_high, 4)],
        "base_ms": round(timing.baseline_ms, 4),
        "latency_ms": round(timing.latency_ms, 4),
        "size_bytes": path.stat().st_size,
        **kernels(task.target, path),
        "val": round(task.val_file(path), 4),
        "test": round(test.value, 4),
        "images": test.images,
        "correct": packed(test.correct),
    }


def run(peer: str, args: Any, task: Task, python: str, folder: Path) -> Row:
    """Run a tool and look at its file."""
    row: Row = {
        "network": args.network,
        "latency": args.latency,
        "minutes": args.minutes,
        "peer": peer,
        "base_test": task.base_test,
    }
    command = [sys.executable if peer in OWN else python, "-m", "contest", "--peer", peer]
    command += ["--network", args.network, "--latency", str(args.latency)]
    command += ["--seconds", str(60 * args.minutes), "--folder", str(folder)]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment["AUTOCOMPRESS_CACHE"] = str(_fresh_cache(folder))
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60 * args.minutes + _OVER_S,
            check=True,
        )
        told = json.loads(done.stdout.strip().split("\n")[-1])
    except subprocess.TimeoutExpired:
        return {**row, "reason": "did not end in time"}
    except subprocess.CalledProcessError as error:
        return {**row, "reason": f"ended with {error.returncode}: see standard error"}
    seconds = round(time.perf_counter() - start, 1)
    file = Path(told.pop("file"))
    return {**row, **told, "seconds": seconds, **judged(task, file)}


def _fresh_cache(folder: Path) -> Path:
    """A cache that holds the decoded images and nothing that an earlier run has computed."""
    from autocompress.workloads.cache import cache_folder

    cache = folder / "cache"
    cache.mkdir()
    (cache / "images").symlink_to(cache_folder() / "images")
    return cache


def parsed() -> argparse.Namespace:
    """What is asked for."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--network", choices=NETWORKS, default="resnet20")
    options.add_argument("--latency", type=lambda t: float(t.rstrip("x")), default=0.5)
    options.add_argument("--minutes", type=float, default=3.0)
    options.add_argument("--peer", choices=PEERS, action="append", help="repeatable; all if absent")
    options.add_argument("--again", action="store_true", help="run also what has a row")
    options.add_argument("--rows", type=Path, default=HERE / "leaderboard.jsonl")
    options.add_argument("--page", type=Path, help="write tables into this page and end")
    options.add_argument(
        "--peers-python", default=str(HERE.parent / ".venv-peers" / "bin" / "python")
    )
    options.add_argument("--json", action="store_true", help="rows as JSON lines")
    return options.parse_args()


def main() -> None:
    """Run what is missing, or write the page."""
    args = parsed()
    if args.page:
        args.page.write_text(written(args.page.read_text(), load(args.rows)))
        return
    known = {key_of(row) for row in load(args.rows)}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "judge"
        base.mkdir()
        task = Task(args.network, args.latency, 0.0, time.time(), base)
        task.base_test = round(
            score(file_answers(task.target, task.base, task.data.test, threads=1)).value, 4
        )
        for peer in args.peer or PEERS:
            if (args.network, args.latency, args.minutes, peer) in known and not args.again:
                continue
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                row = run(peer, args, task, args.peers_python, Path(folder))
            append(args.rows, row)
            shown = {k: v for k, v in row.items() if k != "correct"}
            print(json.dumps(shown) if args.json else shown, flush=True)


if __name__ == "__main__":
    main()

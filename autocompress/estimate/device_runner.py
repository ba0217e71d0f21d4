"""Times packed kernels and whole models on this device; needs numpy and onnxruntime only.

Unpack the archive on the device, let nothing else run, and start this file:

    python run_kernels.py

It writes table.json. Take that file back and name it in the study: `target: {table: table.json}`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the files packed beside this one
from machine import machine_facts
from rounds import quiet_rounds, take_round, warm_up

WARM_UP = 5
KERNEL_ID = re.compile(r"k(\d{5})")
TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}


def open_session(path: Path, threads: int, batch: int, profile: Path | None = None) -> Any:
    """A session on the CPU with a fixed batch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # the name that autocompress gives the free batch dimension
    options.add_free_dimension_override_by_name("batch", batch)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def random_feed(session: Any, batch: int) -> dict[str, Any]:
    """Inputs that fit: normal floats, zeros and ones otherwise."""
    rng = np.random.default_rng(0)
    feed = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else batch for d in value.shape]
        kind = np.dtype(TYPES.get(value.type, value.type[7:-1]))  # "tensor(int64)"
        drawn = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 2, shape)
        feed[value.name] = drawn.astype(kind)
    return feed


def time_kernels(
    path: Path, keys: list[str], threads: int, batch: int, runs: int
) -> dict[str, float]:
    """Milliseconds by key, from the runtime's own profiler."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, threads, batch, Path(folder) / "profile")
        feed = random_feed(session, batch)
        for _ in range(WARM_UP + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            nodes[f"{event['args'].get('node_index')}:{name}"].append(event["dur"] / 1e3)
    found: dict[str, float] = {}
    for name, times in nodes.items():
        match = KERNEL_ID.search(name)
        if match:
            kept = np.sort(times[WARM_UP:])
            # the profiler counts whole microseconds: the faster half keeps more than a median
            ms = float(np.mean(kept[: (len(kept) + 1) // 2]))
            key = keys[int(match.group(1))]
            found[key] = found.get(key, 0.0) + ms
    return found


def time_models(paths: list[Path], threads: int, batch: int, seconds: float) -> Any:
    """Milliseconds of one inference per quiet round and file; the first file is the baseline."""
    calls = []
    for path in paths:
        session = open_session(path, threads, batch)
        calls.append(partial(session.run, None, random_feed(session, batch)))
    for call in calls:
        warm_up(call)
    rng = np.random.default_rng(0)
    rounds: list[Any] = []
    end = time.perf_counter() + seconds
    while len(rounds) < 8 or time.perf_counter() < end:
        rounds.append(np.mean(take_round(calls, [1] * len(calls), rng), axis=0))
    taken = np.array(rounds)
    return taken[quiet_rounds([taken[:, 0]])]


def facts(threads: int, batch: int) -> dict[str, Any]:
    """What the times were taken on."""
    target = {"runtime": "onnxruntime", "version": onnxruntime.__version__, "device": "cpu"}
    return {
        "target": {**target, "threads": threads, "batch": batch},
        "machine": {**machine_facts(), "name": platform.node()},
    }


def main() -> int:
    """Time all that the manifest lists and write the table."""
    here = Path(__file__).resolve().parent
    manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=manifest["threads"])
    parser.add_argument("--runs", type=int, default=8, help="profiled inferences per file")
    parser.add_argument("--passes", type=int, default=3, help="over all files; the fastest counts")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the whole models")
    parser.add_argument("--out", type=Path, default=here / "table.json")
    asked = parser.parse_args()
    batch = manifest["batch"]
    kernels: dict[str, float] = {}
    steps = [chunk for _ in range(asked.passes) for chunk in manifest["kernels"]]
    for i, chunk in enumerate(steps, 1):
        print(f"kernels {i}/{len(steps)}", file=sys.stderr)
        path = here / chunk["file"]
        for key, ms in time_kernels(path, chunk["keys"], asked.threads, batch, asked.runs).items():
            kernels[key] = min(ms, kernels.get(key, ms))
    print(f"{len(manifest['models'])} whole models", file=sys.stderr)
    paths = [here / manifest["baseline"], *(here / m["file"] for m in manifest["models"])]
    rounds = time_models(paths, asked.threads, batch, asked.seconds)
    baseline = float(np.median(rounds[:, 0]))
    ratios = np.median(rounds / rounds[:, :1], axis=0)[1:]
    models = [
        {"policy": m["policy"], "ms": float(r) * baseline}
        for m, r in zip(manifest["models"], ratios, strict=True)
    ]
    table = {
        "version": manifest["version"],
        "architecture": manifest["architecture"],
        "facts": {**facts(asked.threads, batch), "footprint": manifest["footprint"]},
        "kernels": kernels,
        "baseline_ms": baseline,
        "models": models,
    }
    part = asked.out.with_name(asked.out.name + ".part")
    part.write_text(json.dumps(table), encoding="utf-8")
    os.replace(part, asked.out)
    print(f"{len(kernels)} kernels and {len(models)} models are in {asked.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

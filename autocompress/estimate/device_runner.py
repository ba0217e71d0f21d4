"""Times packed kernels and whole models on this device; needs numpy and onnxruntime only.

Unpack the archive on the device, let nothing else run, and start this file:

    python run_kernels.py

It writes table.json. Take that file back and name it in the study: `target: {table: table.json}`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the files packed beside this one
from autocompress.estimate.tasks import Tasks
from autocompress.exporters.kernel_names import kernel_times
from autocompress.machine.facts import machine_facts
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.rounds import Call, warm_up
from autocompress.measure.sampling import InterleavedTiming, Plan
from autocompress.targets.onnx_session import OnnxRuntimeSession
from autocompress.targets.session import random_inputs


class Device:
    """Runs files on the CPU; a free axis named ``batch`` is settled to so many samples."""

    def __init__(self, threads: int, batch: int) -> None:
        self.threads, self.batch = threads, batch

    def open(self, path: Path) -> tuple[OnnxRuntimeSession, Any]:
        """A session, and random inputs for it."""
        providers = [("CPUExecutionProvider", dict[str, str]())]
        session = OnnxRuntimeSession(path, providers, self.threads, {"batch": self.batch})
        return session, random_inputs(session.inputs, self.batch, sizes=session.sizes)

    def call(self, path: Path) -> Call:
        """One inference of a file."""
        session, inputs = self.open(path)
        return session.prepare(inputs)

    def kernels(self, path: Path, keys: list[str], runs: int) -> dict[str, float]:
        """Milliseconds by key, from the runtime's own profiler."""
        session, inputs = self.open(path)
        with closing(session):
            nodes = session.profile(inputs, runs).nodes
        times = kernel_times([(node.name, node.ms) for node in nodes], len(keys))
        return {key: ms for key, ms in zip(keys, times, strict=True) if ms == ms}

    def models(self, paths: list[Path], seconds: float) -> tuple[float, list[float]]:
        """Milliseconds of the first file, and what the others take of it."""
        plan = Plan(min_rounds=8, max_seconds=seconds, slot_ms=3.0)
        found = InterleavedTiming([self.call(path) for path in paths], plan, QuietSpeed()).run()
        ratios = [found.interval(i, plan)[0] for i in range(1, len(paths))]
        return float(np.median(found.times(0))), ratios

    def facts(self) -> dict[str, Any]:
        """What the times were taken on."""
        target = {"runtime": "onnxruntime", "version": onnxruntime.__version__, "device": "cpu"}
        return {
            "target": {**target, "threads": self.threads, "batch": self.batch},
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
    device = Device(asked.threads, manifest["batch"])
    paths = [here / manifest["baseline"], *(here / m["file"] for m in manifest["models"])]
    kernels: dict[str, float] = {}
    watched = device.call(paths[0])
    steps = [chunk for _ in range(asked.passes) for chunk in manifest["kernels"]]
    done = 0

    def profile(chunk: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        print(f"kernels {done}/{len(steps)}", file=sys.stderr)
        times = device.kernels(here / chunk["file"], chunk["keys"], asked.runs)
        kernels.update({key: min(ms, kernels.get(key, math.inf)) for key, ms in times.items()})

    Tasks([partial(profile, chunk) for chunk in steps], lambda: 1e3 * warm_up(watched)).run()
    print(f"{len(manifest['models'])} whole models", file=sys.stderr)
    baseline, ratios = device.models(paths, asked.seconds)
    models = [
        {"policy": m["policy"], "ms": ratio * baseline}
        for m, ratio in zip(manifest["models"], ratios, strict=True)
    ]
    table = {
        "version": manifest["version"],
        "architecture": manifest["architecture"],
        "facts": {**device.facts(), "footprint": manifest["footprint"]},
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

"""Times packed kernels and whole models on this device; needs numpy and onnxruntime only.

Unpack the archive on the device, let nothing else run, and start this file:

    python run_kernels.py

It writes table.json. Take that file back and name it in the study: `target: {table: table.json}`.
``--models-only`` takes a minute: a first answer, by the known device that this one resembles.
With ``--serve`` it answers a study that has started it over a connection.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the files packed beside this one
from autocompress.estimate.on_device import FileRunner
from autocompress.estimate.serving import serve, tell_memory
from autocompress.estimate.tasks import Tasks
from autocompress.measure.rounds import warm_up

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Answer a study, or time all that the manifest lists and write the table."""
    if sys.argv[1:] == ["--serve"]:
        serve(Path(__file__).resolve())
    elif sys.argv[1:2] == ["--memory"]:
        tell_memory(sys.argv[2])
    else:
        return write_table()
    return 0


def write_table() -> int:
    """Time all that the manifest lists and write the table."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=manifest["threads"])
    parser.add_argument("--runs", type=int, default=8, help="profiled inferences per file")
    parser.add_argument("--passes", type=int, default=3, help="over all files; the fastest counts")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the whole models")
    parser.add_argument(
        "--models-only", action="store_true", help="a minute: no kernels, the device is placed"
    )
    parser.add_argument("--out", type=Path, default=HERE / "table.json")
    asked = parser.parse_args()
    device = FileRunner(asked.threads, manifest["batch"])
    paths = [HERE / manifest["baseline"], *(HERE / m["file"] for m in manifest["models"])]
    kernels: dict[str, float] = {}
    watched = device.call(paths[0])
    passes = 0 if asked.models_only else asked.passes
    steps = [chunk for _ in range(passes) for chunk in manifest["kernels"]]
    done = 0

    def profile(chunk: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        print(f"kernels {done}/{len(steps)}", file=sys.stderr)
        times = device.kernels(HERE / chunk["file"], chunk["keys"], asked.runs)
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

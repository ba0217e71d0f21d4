"""How well the latency on a device that is not here is predicted, by what it is asked to time.

The device is this machine with another number of threads, or behind a command that runs Python
elsewhere (``--python "qemu-x86_64 -cpu Haswell python3"``, ``--python "ssh board python3"`` with a
shared folder). It times the packed models alone, and then the kernels, too; both tables predict
policies that were held out, which the device then times beside the uncompressed model.

    python benchmarks/other_device.py --json [--network resnet20] [--threads 2] [--python COMMAND]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency_model import NETWORKS, SETTINGS, Subject, exporter, random_policies
from scipy.stats import spearmanr

from autocompress.estimate.other_device import device_model
from autocompress.estimate.pack import pack_kernels
from autocompress.policy.policy import Policy
from autocompress.targets import get_target
from autocompress.workloads.cache import latency_folder


def on_device(python: str, folder: Path, *options: str) -> tuple[Path, float]:
    """Run the packed runner there: its table, and minutes."""
    start = time.perf_counter()
    command = [*shlex.split(python), str(folder / "run_kernels.py"), *options]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return folder / "table.json", (time.perf_counter() - start) / 60


def held_out(folder: Path, policies: list[Policy], variant: Any) -> None:
    """Put policies in the place of the packed models."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["models"] = []
    for i, policy in enumerate(policies):
        name = f"models/held-out-{i:03d}.onnx"
        variant(policy).rename(folder / name)
        manifest["models"].append({"file": name, "policy": policy.as_dict()})
    (folder / "manifest.json").write_text(json.dumps(manifest))


def judge(name: str, count: int, python: str, threads: int) -> dict[str, Any]:
    """One network: what each table predicts, beside what the device measures."""
    subject = Subject.of(name)
    inventory, space = subject.inventory, subject.space
    own = ("--threads", str(threads))
    with tempfile.TemporaryDirectory() as scratch:
        folder, there = Path(scratch), Path(scratch) / "there"
        variant = exporter(subject, folder)
        target = get_target("onnxruntime")
        base = variant(Policy())
        packed = pack_kernels(
            folder / "kernels.zip", inventory, space, target, variant, base, settings=SETTINGS
        )
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(there)
        policies = random_policies(space, count, seed=99)
        rows, predicted = {}, {}
        for way, options in (("placed", ("--models-only",)), ("kernels", ())):
            table, minutes = on_device(python, there, *own, *options)
            # what this device itself brought is not known before
            cache = latency_folder() if way == "placed" else folder / "cache"
            found = device_model(table, inventory, SETTINGS, cache)
            predicted[way] = np.array([found.predict(p)[0] for p in policies]) / found.baseline_ms
            rows[way] = {"minutes": minutes, **found.facts.get("placed", {})}
        held_out(there, policies, variant)
        table, _ = on_device(python, there, *own, "--models-only", "--seconds", "120")
        told = json.loads(table.read_text())
    true = np.array([one["ms"] for one in told["models"]]) / told["baseline_ms"]
    for way, row in rows.items():
        row["mean_abs_error_percent"] = float(100 * np.abs(predicted[way] - true).mean())
        row["spearman"] = float(spearmanr(predicted[way], true).statistic)
    device = {"threads": threads, "python": python, "baseline_ms": told["baseline_ms"]}
    span = {"measured_ratio_low": float(true.min()), "measured_ratio_high": float(true.max())}
    return {"network": name, "policies": count, **device, **span, **rows}


def main() -> None:
    """Judge the network asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet20")
    parser.add_argument("--policies", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", default=sys.executable, help="runs Python on the device")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = judge(asked.network, asked.policies, asked.python, asked.threads)
    if asked.json:
        print(json.dumps({"other_device": found}))
        return
    for way in ("placed", "kernels"):
        row = found[way]
        print(
            f"{way:8} {row['minutes']:.1f} min, error {row['mean_abs_error_percent']:.1f} %, "
            f"Spearman {row['spearman']:.3f}"
        )


if __name__ == "__main__":
    main()

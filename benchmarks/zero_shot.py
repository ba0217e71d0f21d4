"""Accuracy right after pruning, without training: importance x reconstruction x kept share.

Inner channels of each residual block only, the same share everywhere, on the trained ResNet-20's
validation split. Also how long the layer bank takes to build and to stitch from. Data and weights
are found through AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS.

    python benchmarks/zero_shot.py --json [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from autocompress.build.bank import LayerBank
from autocompress.build.batch_norm import reestimate
from autocompress.build.sequential import sequential_resolve
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import module_answers
from autocompress.quality.score import score
from autocompress.task.data import Data
from autocompress.techniques.compressed import Compressed
from autocompress.workloads.data import image_folder
from autocompress.workloads.models import CifarResNet, load_weights, resnet20, resnet56

IMPORTANCES = ("l1", "taylor", "obs")
RECONSTRUCTIONS = ("none", "batch_norm", "bank", "bank_batch_norm", "sequential")
KEEPS = (0.75, 0.5, 0.375, 0.25)


def trained(name: str) -> CifarResNet:
    """A shared network in eval mode."""
    folder = Path(os.environ["AUTOCOMPRESS_WEIGHTS"])
    model = {"resnet20": resnet20, "resnet56": resnet56}[name]()
    load_weights(model, str(folder / f"{name}_cifar10.safetensors"))
    return model.eval()


def uniform(bank: LayerBank, keep: float) -> Policy:
    """The same share of every prunable group's channels."""
    policy = LayerPolicy(prune_ratio=1 - keep)
    return Policy({p: policy for g in bank.inventory.channel_groups for p in g.producers})


def reconstruct(bank: LayerBank, policy: Policy, how: str, data: Data) -> Compressed:
    """Stitch a policy and repair it in one of the five ways."""
    compressed = bank.stitch(policy, solve=how not in ("none", "batch_norm"))
    settings = bank.settings
    if how == "sequential":
        images = data.train.sample(settings.resolving(bank.inventory.macs), settings.seed).inputs()
        return sequential_resolve(bank.model, compressed, images)
    if how in ("batch_norm", "bank_batch_norm"):
        images = data.train.sample(settings.resolving(bank.inventory.macs), settings.seed).inputs()
        reestimate(compressed.module, images)
    return compressed


def built(name: str, data: Data, importance: str) -> tuple[LayerBank, float, float]:
    """A network's bank, and the seconds it took without any cache: on the clock, of the CPU."""
    model = trained(name)
    start, cpu = time.perf_counter(), time.process_time()
    inventory = take_inventory(model, data.train.inputs(1))
    settings = CompressionSettings.model_validate({"importance": importance})
    bank = LayerBank.build(model, inventory, data.train, settings)
    return bank, time.perf_counter() - start, time.process_time() - cpu


def ladder(data: Data, keeps: tuple[float, ...], importances: tuple[str, ...]) -> list[Any]:
    """One row per importance, reconstruction and kept share."""
    found = []
    for importance in importances:
        bank, _, _ = built("resnet20", data, importance)
        for keep in keeps:
            for how in RECONSTRUCTIONS:
                start, cpu = time.perf_counter(), time.process_time()
                compressed = reconstruct(bank, uniform(bank, keep), how, data)
                seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
                reached = score(module_answers(compressed.module, data.val))
                row = {
                    "importance": importance,
                    "reconstruction": how,
                    "keep": keep,
                    "accuracy": round(reached.value, 4),
                    "accuracy_stderr": round(reached.stderr, 4),
                    "seconds": round(seconds, 3),
                    "cpu_seconds": round(cpu, 3),
                }
                print(json.dumps(row), file=sys.stderr)
                found.append(row)
    return found


def bank_times(name: str, data: Data) -> dict[str, float]:
    """Build time; median times of stitching a new policy, and of one seen before."""
    bank, seconds, cpu = built(name, data, "obs")
    times: dict[str, list[float]] = defaultdict(list)
    for keep in (0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25):
        policy = uniform(bank, keep)
        for name in ("first_stitch", "stitch"):
            start, busy = time.perf_counter(), time.process_time()
            bank.stitch(policy)
            times[f"{name}_ms"].append(1000 * (time.perf_counter() - start))
            times[f"{name}_cpu_ms"].append(1000 * (time.process_time() - busy))
    return {
        "build_s": round(seconds, 2),
        "build_cpu_s": round(cpu, 2),
        **{name: round(statistics.median(found), 1) for name, found in times.items()},
        "moments_mb": round(sum(m.second.nbytes for m in bank.moments.values()) / 2**20, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="keep 0.5 with obs only, no ResNet-56")
    parser.add_argument("--keep", type=float, help="one kept share")
    parser.add_argument("--only", choices=("ladder", "bank"), help="half of it")
    parser.add_argument("--importance", choices=IMPORTANCES, help="one of the three")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    data = image_folder(str(Path(os.environ["AUTOCOMPRESS_DATA"]) / "cifar10"))
    chosen = (args.importance,) if args.importance else ("obs",) if args.quick else IMPORTANCES
    keeps = (args.keep,) if args.keep else (0.5,) if args.quick else KEEPS
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    if args.only != "bank":
        result["base_accuracy"] = round(
            score(module_answers(trained("resnet20"), data.val)).value, 4
        )
        result["ladder"] = ladder(data, keeps, chosen)
    if args.only != "ladder":
        names = ("resnet20",) if args.quick else ("resnet20", "resnet56")
        result["bank"] = {name: bank_times(name, data) for name in names}
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

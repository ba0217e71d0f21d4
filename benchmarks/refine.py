"""Repair without labels on a trained ResNet: what each part of ``finish: refine`` brings.

Inner channels of every residual block, the same share everywhere; with ``--weight-bits`` the
network's weights are rounded as well, and training goes through the rounding. Accuracy on the
validation split of the module, nothing trained on labels. Data and weights are found through
AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS.

    python benchmarks/refine.py --json [--quick] [--network resnet20] [--images 4096]
    python benchmarks/refine.py --json --keep 1 --weight-bits 3
    python benchmarks/refine.py --json --ways whole --steps 900 --network-lr 2e-3
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.build.refine import Refinement
from autocompress.build.sequential import sequential_resolve
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.quality.answers import module_answers
from autocompress.quality.score import score
from autocompress.task.data import Data
from autocompress.task.ready import ready
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate
from autocompress.workloads.data import image_folder
from autocompress.workloads.models import load_weights, resnet20, resnet56

NETWORKS = {"resnet20": resnet20, "resnet56": resnet56}
WAYS = ("blocks", "whole", "both")


def measure(
    network: str, keeps: list[float], ways: list[str], config: RefineConfig, bits: int, limit: int
) -> dict[str, Any]:
    """Accuracy in percent and seconds, by kept share and way."""
    weights = Path(os.environ["AUTOCOMPRESS_WEIGHTS"]) / f"{network}_cifar10.safetensors"
    model = load_weights(NETWORKS[network](), str(weights)).eval()
    data = image_folder(str(Path(os.environ["AUTOCOMPRESS_DATA"]) / "cifar10"))
    settings = CompressionSettings(finish="refine", refine=config)
    task = ready("classification")
    inventory = take_inventory(model, data.train.inputs(1))
    begin = time.perf_counter()
    bank = LayerBank.build(model, inventory, data.train, settings)
    found: dict[str, Any] = {
        "network": network,
        "config": config.model_dump(),
        "weight_bits": bits,
        "base": top1(model, data, limit),
        "bank_s": round(time.perf_counter() - begin, 1),
    }
    for keep in keeps:
        inner = {p for g in inventory.channel_groups if not g.residual for p in g.producers}
        shares = {n.name: 1 - keep if n.name in inner else 0.0 for n in inventory.layers}
        policy = Policy(
            {name: LayerPolicy(prune_ratio=p, weight_bits=bits) for name, p in shares.items()}
        )
        begin = time.perf_counter()
        images = data.train.sample(settings.resolving(inventory.macs), settings.seed)
        solved = sequential_resolve(model, bank.stitch(policy), images.inputs())
        row = {
            "sequential": points(solved, data, limit),
            "sequential_s": round(time.perf_counter() - begin, 1),
        }
        for way in ways:
            changes = {"blocks": {"steps": 0}, "whole": {"block_steps": 0}, "both": {}}[way]
            begin = time.perf_counter()
            own = config.model_copy(update=changes)
            done = Refinement(model, solved, data, task, own, settings.seed).run()
            row[f"{way}_s"] = round(time.perf_counter() - begin, 1)
            row[way] = points(done, data, limit)
            sys.stderr.write(f"keep {keep}: {way} {row[way]} in {row[f'{way}_s']} s\n")
        found[f"keep_{keep}"] = row
    return found


def points(compressed: Compressed, data: Data, limit: int) -> float:
    """Top-1 on val, in percent, of what the file would hold."""
    if not compressed.quantized:
        return top1(compressed.module, data, limit)
    images = data.train.sample(512, compressed.settings.seed)
    return top1(simulate(calibrate(compressed, images.inputs())), data, limit)


def top1(module: Any, data: Data, limit: int) -> float:
    """Top-1 on val, in percent."""
    return round(100 * score(module_answers(module, data.val.sample(limit))).value, 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="half width, a tenth of the steps")
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet20")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--block-steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--network-images", type=int, help="all that the steps read by default")
    parser.add_argument("--network-lr", type=float)
    parser.add_argument("--temperature", type=float, help="4, or 1 at low bits, by default")
    parser.add_argument("--batch-norms", choices=["batch", "kept"], default="batch")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--keep", type=float, action="append", help="share of inner channels")
    parser.add_argument("--weight-bits", type=int, choices=[2, 3, 4, 8, 32], default=32)
    parser.add_argument("--no-augment", action="store_true")
    args = parser.parse_args()
    share = 10 if args.quick else 1
    config = RefineConfig(
        images=args.images,
        steps=args.steps // share,
        block_steps=args.block_steps // share,
        lr=args.lr,
        network_images=args.network_images or "auto",
        network_lr=args.network_lr or "auto",
        temperature=args.temperature,
        batch_norms=args.batch_norms,
        augment=not args.no_augment,
    )
    keeps = args.keep or ([0.5] if args.quick else [0.5, 0.25])
    found = measure(args.network, keeps, args.ways, config, args.weight_bits, 5000)
    print(json.dumps(found, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

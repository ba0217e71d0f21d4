"""Whole residual blocks left out of a trained ResNet, in the order in which a search finds them.

Greedy by divergence on unlabelled training images, as the guided search probes them. Accuracy on
the validation split: as left out, after the sequential re-solve, and after a refinement toward the
network's own outputs on unlabelled training images; and the latency of the exported file beside
that of the whole network, interleaved. Data and weights are found through AUTOCOMPRESS_DATA and
AUTOCOMPRESS_WEIGHTS.

    python benchmarks/blocks.py --json [--quick] [--network resnet56] [--gone 3 6 9 12] [--int8]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.build.refine import Refinement
from autocompress.build.sequential import sequential_resolve
from autocompress.controller.sensitivity import Sensitivity
from autocompress.exporters.write import export
from autocompress.measure.latency import paired_timings
from autocompress.model.groups import slicing_plan
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.policy.space_config import SpaceConfig
from autocompress.quality.answers import module_answers
from autocompress.quality.score import score
from autocompress.recover.device import Place
from autocompress.targets import get_target
from autocompress.task.divergence import SoftmaxKL
from autocompress.task.ready import ready
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate
from autocompress.workloads.data import image_folder
from autocompress.workloads.models import load_weights, resnet20, resnet56

NETWORKS = {"resnet20": resnet20, "resnet56": resnet56}
STARTS = ("refined", "sequential_refined")
"""Refinement of what is left as it is, and of what was solved again in order."""


def greedy(bank: LayerBank, data: Any, images: int, most: int) -> list[str]:
    """Blocks in the order in which they go, the first to go first."""
    autocast = Place.of(Schedule(device="cpu")).autocast  # as screening does
    space = SpaceConfig.read({"rules": [{"block": ["keep", "gone"]}]}).bind(bank.inventory)
    inputs = data.train.sample(images, 1).inputs()
    with torch.inference_mode(), autocast():
        wanted = bank.model(inputs).float()
    probes = 0

    def screen(assignment: tuple[int, ...]) -> float:
        nonlocal probes
        probes += 1
        with torch.inference_mode(), autocast():
            found = bank.stitch(space.decode(assignment)).module(inputs).float()
        kl = float(SoftmaxKL()(wanted, found).mean())
        sys.stderr.write(f"probe {probes}: {sum(assignment)} gone, {kl:.3f} nats\n")
        return kl

    # the first round takes each block alone; every later one looks at a few
    sensitivity = Sensitivity(space, screen)
    sensitivity.probe(lambda: probes < len(space.choices) + 4 * (most - 1))
    return [space.choices[i].layers[0] for i in sensitivity.order]


def without(inventory: Inventory, names: list[str]) -> Policy:
    """The policy that leaves some blocks out."""
    gone = LayerPolicy(block="gone")
    return Policy({n: gone for b in inventory.blocks if b.name in names for n in b.layers})


def measure(network: str, counts: list[int], config: RefineConfig, args: Any) -> dict[str, Any]:
    """Accuracy in percent, latency ratios and seconds, by blocks that are gone."""
    weights = Path(os.environ["AUTOCOMPRESS_WEIGHTS"]) / f"{network}_cifar10.safetensors"
    model = load_weights(NETWORKS[network](), str(weights)).eval()
    data = image_folder(str(Path(os.environ["AUTOCOMPRESS_DATA"]) / "cifar10"))
    settings = CompressionSettings(finish="refine", refine=config)
    inventory = take_inventory(model, data.train.inputs(1))
    # whole blocks need neither orders of channels nor moments
    plan = slicing_plan(model, data.train.inputs(1), ())
    bank = LayerBank(model, inventory, plan, settings, {}, {})
    begin = time.perf_counter()
    order = args.order or greedy(bank, data, args.probe_images, max(counts))
    found: dict[str, Any] = {
        "network": network,
        "config": config.model_dump(),
        "blocks": len(inventory.blocks),
        "greedy_s": round(time.perf_counter() - begin, 1),
        "order": order,
        "base": points(model, data, args.limit),
    }
    task = ready("classification")
    policies = [without(inventory, order[:n]) for n in counts]
    ratios = latency_ratios(data, [bank.stitch(p) for p in (Policy(), *policies)])
    for count, ratio in zip(counts, ratios, strict=True):
        policy = without(inventory, order[:count])
        row: dict[str, Any] = {"latency_ratio": ratio}
        row["unrepaired"] = points(bank.stitch(policy).module, data, args.limit)
        begin = time.perf_counter()
        images = data.train.sample(settings.resolving(inventory.macs), settings.seed)
        solved = sequential_resolve(model, bank.stitch(policy), images.inputs())
        row["sequential"] = points(solved.module, data, args.limit)
        row["sequential_s"] = round(time.perf_counter() - begin, 1)
        if args.int8:
            row |= in_integers(bank, data, policy, solved.module, args.limit)
        starts = {"refined": bank.stitch(policy), "sequential_refined": solved}
        for name in args.start if config.steps else ():
            begin = time.perf_counter()
            done = Refinement(model, starts[name], data, task, config, settings.seed).run()
            row[name] = points(done.module, data, args.limit)
            row[f"{name}_s"] = round(time.perf_counter() - begin, 1)
        found[f"gone_{count}"] = row
        sys.stderr.write(f"{count} gone: {row}\n")
    return found


def in_integers(
    bank: LayerBank, data: Any, policy: Policy, module: Any, limit: int
) -> dict[str, float]:
    """Accuracy and latency ratio with all layers that are left in 8 bits."""
    eight = LayerPolicy(weight_bits=8, activation_bits=8)
    left = {n.name: eight for n in bank.inventory.layers if n.name not in policy.layers}
    stitched = bank.stitch(Policy({**policy.layers, **left})).with_(module=module)
    made = calibrate(stitched, data.train.sample(512, 0).inputs())
    found = points(simulate(made), data, limit)
    (ratio,) = latency_ratios(data, [bank.stitch(Policy()), made])
    return {"int8": found, "int8_latency_ratio": ratio}


def latency_ratios(data: Any, made: list[Compressed]) -> list[float]:
    """Of the exported files beside that of the first, in ONNX Runtime on one thread."""
    target = get_target("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, compressed in enumerate(made):
            path = Path(folder) / f"{i}.onnx"
            export(compressed, path, data.train.inputs(2))
            files.append(path)
        return [round(t.ratio, 3) for t in paired_timings(target, files[1:], files[0])]


def points(module: Any, data: Any, limit: int) -> float:
    """Top-1 on some images of val, which lie there class by class, in percent."""
    val = data.val.sample(min(limit, len(data.val)), 0)
    return round(100 * score(module_answers(module, val)).value, 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="ResNet-20, few images and steps")
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet56")
    parser.add_argument("--gone", type=int, nargs="+", default=[3, 6, 9, 12])
    parser.add_argument("--probe-images", type=int, default=256)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--block-steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--order", nargs="+", help="names of blocks, in place of the greedy order")
    parser.add_argument("--int8", action="store_true", help="what is left in 8 bits as well")
    parser.add_argument("--start", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--limit", type=int, default=2000)
    args = parser.parse_args()
    network, counts = args.network, args.gone
    if args.quick:
        network, counts = "resnet20", [1, 2]
        args.images, args.steps, args.limit, args.probe_images = 512, 20, 500, 64
    config = RefineConfig(
        images=args.images,
        steps=args.steps,
        block_steps=args.block_steps,
        batch_size=args.batch,
        lr=2 * args.lr,  # the whole network learns at half of it
    )
    found = measure(network, counts, config, args)
    print(json.dumps(found, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

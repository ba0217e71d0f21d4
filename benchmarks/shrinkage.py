"""Batch-norm statistics between the old ones and those of the compressed network.

The same share of the inner channels of every block (of every layer of VGG-16-BN) goes; nothing is
trained on labels. After each repair, accuracy on the validation split by the share of the
compressed network's own statistics; and with statistics moved by as much as compressed and
uncompressed network differ on the same images, as federated studies do (``moved``). Data and
weights are found through AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS.

    python benchmarks/shrinkage.py --json [--quick] [--network resnet20] [--keep 0.75 0.5]
    python benchmarks/shrinkage.py --json --after bank sequential refined
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from selection import MODELS, groups_of, loaded
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.batch_norm import reestimate
from autocompress.build.refine import Refinement
from autocompress.build.sequential import sequential_resolve
from autocompress.federated.batch_norms import (
    batch_norm_sums,
    batch_norms,
    kept_channels,
    set_statistics,
    statistics,
)
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import module_answers
from autocompress.quality.score import score
from autocompress.task.data import Data, Split
from autocompress.task.ready import ready

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the compressed network's own statistics in its batch norms."""
AFTER = ("bank", "sequential", "refined")
"""Repairs after which they are set."""


def judging(data: Data, limit: int | None) -> Split:
    """Validation images, which lie there class by class: some of them at random, or all."""
    return data.val if limit is None else data.val.sample(limit, 0)


def move(bank: LayerBank, policy: Policy, module: nn.Module, sample: Split) -> None:
    """Statistics moved by as much as compressed and uncompressed network differ on a sample."""
    kept = kept_channels(bank.model, bank.plan, bank.gone(policy), bank.widths(policy))
    sums = batch_norm_sums(module, bank.model, kept, sample)
    for name, (mean, variance) in statistics(sums, bank.model, kept).items():
        set_statistics(batch_norms(module)[name], mean, variance)


def shrinkage(bank: LayerBank, data: Data, keep: float, args: Any) -> Iterator[dict[str, Any]]:
    """One row for each share of new statistics in the batch norms, after each repair."""
    groups = groups_of(bank)
    producers = [p for g in bank.inventory.channel_groups if g.name in groups for p in g.producers]
    policy = Policy(dict.fromkeys(producers, LayerPolicy(prune_ratio=1 - keep)))
    seen = data.train.sample(args.images, 0).inputs()
    made, val = bank.stitch(policy), judging(data, args.limit)
    for after in AFTER:
        if after not in args.after:
            continue
        if after != "bank":
            made = sequential_resolve(bank.model, bank.stitch(policy), seen)
        if after == "refined":
            task, config = ready("classification"), bank.settings.refine
            made = Refinement(bank.model, made, data, task, config).run()
        module = copy.deepcopy(made.module)
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        old = [(n.running_mean.clone(), n.running_var.clone()) for n in norms]
        reestimate(module, seen)
        moved = copy.deepcopy(made.module)
        move(bank, policy, moved, data.train.sample(args.images, 0))
        reached = score(module_answers(moved, val))
        row = {"keep": keep, "after": after, "share": "moved"}
        yield {**row, "accuracy": round(reached.value, 4)}
        new = [(n.running_mean.clone(), n.running_var.clone()) for n in norms]
        for share in args.shares:
            for norm, before, now in zip(norms, old, new, strict=True):
                norm.running_mean.copy_(torch.lerp(before[0], now[0], share))
                norm.running_var.copy_(torch.lerp(before[1], now[1], share))
            reached = score(module_answers(module, val))
            row = {"keep": keep, "after": after, "share": share}
            yield {**row, "accuracy": round(reached.value, 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 at half width, few images")
    parser.add_argument("--network", choices=list(MODELS), action="append")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--after", choices=AFTER, nargs="+", default=["bank"])
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--limit", type=int, default=None, help="validation images")
    args = parser.parse_args()
    if args.quick:
        args.network, args.keep, args.images = ["resnet20"], [0.5], 256
    rows = []
    for name in args.network or MODELS:
        model, data = loaded(name)
        inventory = take_inventory(model, data.train.inputs(1))
        bank = LayerBank.build(model, inventory, data.train, CompressionSettings())
        base = round(score(module_answers(model, judging(data, args.limit))).value, 4)
        for keep in args.keep:
            for row in shrinkage(bank, data, keep, args):
                rows.append({"network": name, "uncompressed": base, **row})
                print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps({"rows": rows}, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

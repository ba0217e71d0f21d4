"""MiniLM right after heads and MLP channels went, without training: order x reconstruction x what.

The same share in all layers. Told are the mean cosine of the texts' vectors to those of the whole
network, and with ``--accuracy`` that of a fixed linear head that tells spam. Calibrated on training
mails, scored on others. Mails are found through AUTOCOMPRESS_DATA.

    python benchmarks/attention.py --json [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.sequential import sequential_resolve
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Data
from autocompress.workloads.minilm import TextClassifier, minilm, minilm_spam, spam

WHAT = ("attention", "mlp", "both")
WAYS = (
    ("l1", "none"),
    ("l1", "sequential"),
    ("obs", "none"),
    ("obs", "bank"),
    ("obs", "sequential"),
)
"""Importance and reconstruction."""
QUICK = (("l1", "none"), ("obs", "sequential"))


def halves(bank: LayerBank, what: str, keep: float) -> Policy:
    """The same share of all heads, of all channels inside MLPs, or of both."""
    kinds = {"attention": [True], "mlp": [False], "both": [True, False]}[what]
    groups = [g for g in bank.inventory.channel_groups if not g.residual]
    policy = LayerPolicy(prune_ratio=1 - keep)
    return Policy(
        {p: policy for g in groups if g.name.endswith("self_attn") in kinds for p in g.producers}
    )


@torch.no_grad()
def vectors(model: nn.Module, mails: Tensor) -> Tensor:
    """One for each mail."""
    assert isinstance(model, TextClassifier)
    return torch.cat([model.embed(part) for part in mails.split(32)])


def table(model: nn.Module, data: Data, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each way, kept share and kind of channels."""
    held = data.val.sample(args.mails, 0)
    mails, targets = held.inputs(), held.targets
    whole = vectors(model, mails)
    inventory = take_inventory(model, data.train.inputs(1))
    rows, banks = [], {}
    for importance, how in QUICK if args.quick else WAYS:
        if importance not in banks:
            settings = CompressionSettings.model_validate(
                {"importance": importance, "calibration_images": args.calibration}
            )
            start = time.process_time()
            banks[importance] = LayerBank.build(model, inventory, data.train, settings)
            print(f"bank, {importance}: {time.process_time() - start:.1f} s", file=sys.stderr)
        bank = banks[importance]
        seen = data.train.sample(args.calibration, 0).inputs()
        for keep in args.keep:
            for what in WHAT:
                start = time.process_time()
                made = bank.stitch(halves(bank, what, keep), solve=how != "none")
                if how == "sequential":
                    made = sequential_resolve(model, made, seen)
                seconds = time.process_time() - start
                found = vectors(made.module, mails)
                row = {
                    "importance": importance,
                    "reconstruction": how,
                    "keep": keep,
                    "what": what,
                    "cosine": round(float(torch.cosine_similarity(found, whole).mean()), 3),
                    "cpu_seconds": round(seconds, 1),
                }
                if args.accuracy:
                    assert isinstance(made.module, TextClassifier)
                    right = made.module.head(found).argmax(1) == targets
                    row["accuracy"] = round(float(right.float().mean()), 4)
                print(json.dumps(row), file=sys.stderr)
                rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="by weight, and the whole machinery")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5], help="kept shares")
    parser.add_argument("--calibration", type=int, default=200, help="training mails")
    parser.add_argument("--mails", type=int, default=400, help="mails that are scored")
    parser.add_argument("--accuracy", action="store_true", help="of a head trained on 2,000 mails")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    root = os.environ["AUTOCOMPRESS_DATA"]
    data = spam(root)
    model = (minilm_spam(root, texts=2000) if args.accuracy else minilm()).eval()
    result = {"threads": args.threads, "calibration": args.calibration, "mails": args.mails}
    result["rows"] = table(model, data, args)
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

"""The table of words of MiniLM in low rank and in fewer bits, without training.

Ranks are shares of the break-even rank; factors are those of the rows as they occur in the training
mails, or of all rows alike. Cosine of the mails' vectors to the original ones and accuracy of the
fixed head on validation mails; size of the exported file, and its latency beside that of the float
file, interleaved. Mails are found through AUTOCOMPRESS_DATA.

    python benchmarks/tables.py --json [--quick] [--mails 400] [--only score | timing]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.measure.latency import paired_timings
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target
from autocompress.task.data import Split
from autocompress.techniques.quantize import simulate
from autocompress.workloads.cache import cache_folder
from autocompress.workloads.minilm import minilm_spam, spam

TABLE = "words"
WAYS = {
    "8 bits": LayerPolicy(weight_bits=8),
    "4 bits": LayerPolicy(weight_bits=4),
    **{f"rank {r:g}": LayerPolicy(rank_ratio=r) for r in (1.0, 0.5, 0.25)},
    "rank 0.5, 8 bits": LayerPolicy(rank_ratio=0.5, weight_bits=8),
}


@torch.no_grad()
def vectors(module: nn.Module, mails: Split) -> Tensor:
    """One vector per mail."""
    return torch.cat([module.embed(ids) for ids, _ in mails.batches(64)])  # type: ignore[operator]  # of the classifier


def measure(args: Any) -> dict[str, Any]:
    """Rows of the table, the float model's first."""
    root = os.environ["AUTOCOMPRESS_DATA"]
    model, data = minilm_spam(root, texts=2000).eval(), spam(root, val_limit=args.mails)
    mails = data.val.subset(torch.arange(min(args.mails, len(data.val))))
    settings = CompressionSettings(calibration_images=256)
    inventory = take_inventory(model, data.train.inputs(1))
    cache = cache_folder() / "banks"
    bank = LayerBank.build(model, inventory, data.train, settings, cache)
    alike = LayerBank(model, bank.inventory, bank.plan, settings, bank.orders, bank.moments)
    example, before = data.train.inputs(1), None
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, policy in {"float": LayerPolicy(), **WAYS}.items():
            for how, source in (("occurrence", bank), ("alike", alike)):
                if policy.rank_ratio is None and source is alike:
                    continue
                title = f"{name}, {how}" if policy.rank_ratio else name
                made = source.stitch(Policy({TABLE: policy}))
                if made.quantized:
                    made = calibrate(made, data.train.inputs(64))
                file = export(made, Path(folder) / f"{len(files)}.onnx", example)
                files[title] = file.path
                rows[title] = {"size_bytes": file.size_bytes}
                if args.only == "timing":
                    continue
                found = vectors(simulate(made) if made.quantized else made.module, mails)
                before = found if before is None else before
                with torch.no_grad():
                    right = model.head(found).argmax(1) == mails.targets
                rows[title] |= {
                    "cosine": float(F.cosine_similarity(found, before).mean()),
                    "accuracy": float(right.float().mean()),
                }
                sys.stderr.write(f"{title}: {rows[title]}\n")
        if args.only != "score":
            target = get_target({"runtime": "onnxruntime", "threads": 1})
            timed = {n: p for n, p in files.items() if "alike" not in n and n != "float"}
            timings = paired_timings(target, list(timed.values()), files["float"])
            for name, timing in zip(timed, timings, strict=True):
                rows[name]["latency_ratio"] = timing.ratio
    return {"mails": len(mails), "never_read": bank.inventory.never_read, "ways": rows}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--mails", type=int, default=400)
    parser.add_argument("--only", choices=["score", "timing"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.mails = 100
    print(json.dumps(measure(args), indent=None if args.json else 1))


if __name__ == "__main__":
    main()

"""How much accuracy comes back: ResNet-20 and ResNet-56 at shares of their multiply-adds, CIFAR-10.

Uniform pruning of the inner channels of each block (no search: what a search finds is at least as
good), the sequential re-solve, then fine-tuning with labels alone and with the uncompressed model
as a teacher (``--ways`` takes one of them alone): same policy, schedule and seed. Accuracy is that
of the exported file in ONNX Runtime on the test split; differences are paired on the same images.
Trained weights are kept in ``--out`` and an interrupted training goes on from there. Data and
weights are found through AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS.

    python benchmarks/recovery.py --json [--quick] [--network resnet20] [--ways labels] [--out DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autocompress.model.cost import policy_cost
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.quality.answers import file_answers
from autocompress.quality.score import Accuracy, paired, score
from autocompress.results.trial import Phase
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.study import load_study
from autocompress.techniques.compressed import Compressed


@dataclass(frozen=True)
class Goal:
    """At most so many points may be lost at a share of the multiply-adds, after so many epochs."""

    share: float
    epochs: float
    points: float


GOALS = {
    "resnet20": (Goal(0.73, 5, 0.7), Goal(0.5, 10, 1.5)),
    "resnet56": (Goal(0.5, 10, 1.0),),
}
WAYS = {"labels": None, "distilled": Distill()}


def parts_of(network: str, out: Path, quick: bool) -> Assembly:
    """The network's shipped study, with a subset of the images if it must be quick."""
    study = load_study(f"cifar10_{network}")
    if quick:
        arguments = {**study.data.args, "limit": 5000}
        study = study.changed(data={"factory": study.data.factory, "args": arguments})
    return assemble(study, out)


def at_share(parts: Assembly, share: float) -> tuple[Policy, float]:
    """The mildest uniform policy with at most a share of the multiply-adds, and its true share."""
    inventory, settings = parts.inventory, parts.study.settings
    groups = [g for g in inventory.channel_groups if not g.residual]
    whole = policy_cost(inventory, Policy(), settings).macs
    for ratio in (i / 64 for i in range(64)):
        layer = LayerPolicy(prune_ratio=ratio)
        policy = Policy({p: layer for g in groups for p in g.producers})
        found = policy_cost(inventory, policy, settings).macs / whole
        if found <= share:
            return policy, found
    raise SystemExit(f"no uniform policy reaches {share:.0%} of the multiply-adds")


class Scores:
    """Accuracy on test of exported files, beside the uncompressed one."""

    def __init__(self, parts: Assembly) -> None:
        self.parts = parts
        self.base = self.of(parts.pipeline.stitch(Policy()))

    def of(self, compressed: Compressed) -> Accuracy:
        """Of one model's file."""
        measurer = self.parts.evaluator.measurer
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            measurer.export(compressed, path)
            return score(file_answers(measurer.target, path, self.parts.data.test))

    def lost(self, found: Accuracy) -> dict[str, Any]:
        """Points below the uncompressed model, with the interval of the paired difference."""
        pair = paired(self.base, found)
        return {
            "accuracy": round(found.value, 4),
            "points_lost": round(100 * pair.difference, 2),
            "points_lost_95": [round(100 * pair.low, 2), round(100 * pair.high, 2)],
        }


def recover(
    parts: Assembly, scores: Scores, goal: Goal, epochs: float, ways: list[str]
) -> dict[str, Any]:
    """One goal: before training, after it, and after it with a teacher."""
    policy, share = at_share(parts, goal.share)
    before = scores.of(parts.pipeline.build(policy, Phase("recover", 0.0, 1)))
    out: dict[str, Any] = {
        "macs_share": round(share, 4),
        "epochs": epochs,
        "before_training": scores.lost(before),
    }
    found = {}
    for name in ways:
        start = time.perf_counter()
        asked = dataclasses.replace(policy, distill=WAYS[name])
        compressed = parts.evaluator.builder(asked, Phase("recover", epochs, 1), seed=0)
        seconds = time.perf_counter() - start
        found[name] = scores.of(compressed)
        lost = scores.lost(found[name])
        reached = lost["points_lost"] <= goal.points
        out[name] = {**lost, "reached": reached, "seconds": round(seconds, 1)}
    if len(found) == len(WAYS):
        gain = paired(found["distilled"], found["labels"])
        out["distillation_gain_points"] = round(100 * gain.difference, 2)
        out["distillation_gain_95"] = [round(100 * gain.low, 2), round(100 * gain.high, 2)]
    return {**out, "goal_points_lost": goal.points}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one share, 1 epoch of 5,000 images, 1,000 test images: shows that it works, no more",
    )
    parser.add_argument("--network", choices=list(GOALS), default="resnet20")
    parser.add_argument("--ways", default=",".join(WAYS), help="labels, distilled, or both")
    parser.add_argument("--out", type=Path, help="keeps trained weights; a temporary folder if not")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        parts = parts_of(args.network, args.out or Path(temporary), args.quick)
        scores = Scores(parts)
        result: dict[str, Any] = {
            "network": args.network,
            "threads": torch.get_num_threads(),
            "quick": args.quick,
            "train_images": len(parts.data.train),
            "test_images": scores.base.images,
            "base_accuracy": round(scores.base.value, 4),
        }
        goals = GOALS[args.network]
        for goal in goals[:1] if args.quick else goals:
            epochs = 1.0 if args.quick else goal.epochs
            found = recover(parts, scores, goal, epochs, args.ways.split(","))
            result[f"macs_{goal.share:.0%}"] = found
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

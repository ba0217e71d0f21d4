"""How well cheap scores of a policy foretell its accuracy after repair, and what each costs.

Random policies near a budget of multiply-adds are scored in several ways, none of which sees a
label or a validation image; then each is refined (``finish: refine``, shortened) and its accuracy
on the validation split is taken. Printed is the rank correlation (Spearman) of every score with
that accuracy, with a 95 % bootstrap interval, beside the seconds that one score takes. Data and
weights are found through AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS.

    python benchmarks/screening.py --json [--quick] [--network resnet20] [--policies 60]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.build.refine import Refinement
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.policy.space_config import SpaceConfig
from autocompress.quality.answers import module_answers
from autocompress.quality.score import score
from autocompress.quality.screening import Screening
from autocompress.task.data import Data
from autocompress.workloads.data import image_folder
from autocompress.workloads.models import load_weights, resnet20, resnet56, vgg16_bn

NETWORKS = {"resnet20": resnet20, "resnet56": resnet56, "vgg16": vgg16_bn}
_RULE = {"match": "*", "prune_ratio": [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]}
_IMAGES = 512


def trained(name: str) -> tuple[Any, Data]:
    """A shared network in eval mode, and CIFAR-10."""
    weights = Path(os.environ["AUTOCOMPRESS_WEIGHTS"]) / f"{name}_cifar10.safetensors"
    model = load_weights(NETWORKS[name](), str(weights)).eval()
    return model, image_folder(str(Path(os.environ["AUTOCOMPRESS_DATA"]) / "cifar10"))


def near(pipeline: Pipeline, share: float, count: int) -> list[Policy]:
    """Random policies with that share of the multiply-adds, 3 % up or down."""
    space = SpaceConfig.read({"rules": [_RULE]}).bind(pipeline.inventory)
    rng = np.random.default_rng(0)
    whole = policy_cost(pipeline.inventory, Policy(), pipeline.settings).macs
    found: list[Policy] = []
    while len(found) < count:
        # a level for all with some spread around it, so that every budget is within reach
        centre, spread = rng.uniform(0, 7), rng.uniform(0.5, 3)
        drawn = [
            int(np.clip(round(rng.normal(centre, spread)), 0, len(c.levels) - 1))
            for c in space.choices
        ]
        policy = Policy(space.decode(drawn).layers)
        kept = policy_cost(pipeline.inventory, policy, pipeline.settings).macs / whole
        if abs(kept - share) <= 0.03 and policy not in found:
            found.append(policy)
    return found


def scores(pipeline: Pipeline, short: RefineConfig) -> dict[str, Callable[[Policy], float]]:
    """The ways to score a policy: lower is better."""
    how = {
        name: replace(
            pipeline,
            settings=pipeline.settings.model_copy(update={"reconstruction": reconstruction}),
        )
        for name, reconstruction in (("as stitched", "bank"), ("norms by batch", "bank_batch_norm"))
    }
    screens = {name: Screening(own, _IMAGES) for name, own in how.items()}
    final = Screening(pipeline, _IMAGES)

    def solved(policy: Policy, steps: int) -> float:
        made = pipeline.reconstruct(pipeline.stitch(policy), final=False)
        if steps:
            own = short.model_copy(update={"steps": steps, "block_steps": 0})
            made = Refinement(pipeline.model, made, pipeline.data, pipeline.task, own).run()
        return _divergence(final, made.module)

    def layers(policy: Policy) -> float:
        """Relative squared errors of what the layers give, summed."""
        return _layer_errors(pipeline, pipeline.stitch(policy).module)

    return {
        **{name: (lambda p, s=screen: s(p, _IMAGES).kl) for name, screen in screens.items()},
        "layer errors": layers,
        "sequential": lambda policy: solved(policy, 0),
        "20 steps": lambda policy: solved(policy, 20),
    }


def _divergence(screening: Screening, module: Any) -> float:
    with torch.inference_mode():
        outputs = screening._outputs(module, _IMAGES)
        each = screening._divergence(screening._reference, outputs, screening._targets(_IMAGES))
    return float(each.mean())


def _layer_errors(pipeline: Pipeline, module: Any) -> float:
    """Sum over the batch norms of the squared difference to the original's output, relative."""
    inputs = pipeline.data.train.inputs(128)
    kinds = torch.nn.modules.batchnorm._BatchNorm
    names = [n for n, m in pipeline.model.named_modules() if isinstance(m, kinds)]
    seen: list[dict[str, torch.Tensor]] = []
    for network in (pipeline.model, module):
        found: dict[str, torch.Tensor] = {}
        handles = [
            network.get_submodule(n).register_forward_hook(
                lambda m, a, o, n=n, found=found: found.update({n: o})
            )
            for n in names
        ]
        with torch.no_grad():
            network(inputs)
        for handle in handles:
            handle.remove()
        seen.append(found)
    old, new = seen
    same = [n for n in names if old[n].shape == new[n].shape]
    return sum(float((old[n] - new[n]).square().mean() / old[n].square().mean()) for n in same)


def correlation(scores: np.ndarray, quality: np.ndarray) -> dict[str, Any]:
    """Spearman's of minus the score with the quality, and a bootstrap interval."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(scores), size=(2000, len(scores)))
    drawn = [spearmanr(-scores[i], quality[i]).statistic for i in picks]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    value = float(spearmanr(-scores, quality).statistic)
    return {"spearman": round(value, 3), "low": round(low, 3), "high": round(high, 3)}


def measure(network: str, share: float, policies: int, config: RefineConfig) -> dict[str, Any]:
    """All policies, all scores."""
    model, data = trained(network)
    settings = CompressionSettings(finish="refine", reconstruction="sequential", refine=config)
    inventory = take_inventory(model, data.train.inputs(1))
    bank = LayerBank.build(model, inventory, data.train, settings)
    pipeline = Pipeline(model, data, inventory, bank, settings, Schedule(epochs=0))
    values: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    ways = scores(pipeline, config)
    for number, policy in enumerate(near(pipeline, share, policies)):
        for name, way in ways.items():
            begin = time.perf_counter()
            values[name].append(way(policy))
            seconds[name] += time.perf_counter() - begin
        begin = time.perf_counter()
        refined = pipeline.reconstruct(pipeline.stitch(policy), final=True)
        seconds["refined"] += time.perf_counter() - begin
        values["refined"].append(score(module_answers(refined.module, data.val)).value)
        sys.stderr.write(f"{number}: { ({n: round(v[-1], 4) for n, v in values.items()}) }\n")
    quality = np.array(values.pop("refined"))
    rows = {
        name: {
            **correlation(np.array(found), quality),
            "seconds": round(seconds[name] / policies, 2),
        }
        for name, found in values.items()
    }
    return {
        "network": network,
        "macs": share,
        "policies": policies,
        "accuracy": [round(float(quality.min()), 4), round(float(quality.max()), 4)],
        "refine_s": round(seconds["refined"] / policies, 1),
        "scores": rows,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="6 policies, hardly refined")
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet20")
    parser.add_argument("--policies", type=int, default=60)
    parser.add_argument("--macs", type=float, default=0.5, help="share of the multiply-adds")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    short = {"images": 1024, "block_steps": 40, "steps": 120, "batch_size": 64}
    config = RefineConfig(**({**short, "steps": 20, "block_steps": 5} if args.quick else short))
    found = measure(args.network, args.macs, 6 if args.quick else args.policies, config)
    print(json.dumps(found, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

"""How well latency is predicted: error and rank on random joint policies held out of the fit.

For each network the latency model is built from nothing (kernels and whole models are timed, no
cache), then asked for policies that it has not seen, which are exported and timed interleaved with
the uncompressed model. The error is a share of the uncompressed latency.

    python benchmarks/latency_model.py --json [--quick] [--network resnet20]

Weights are random, since they do not change how long a model takes. Other work on the machine does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.estimate.latency_model import LatencyModel
from autocompress.exporters.write import export
from autocompress.measure.latency import Timing, paired_timings
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import Plan
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.targets import Target, get_target
from autocompress.task.data import Split
from autocompress.workloads.models import resnet20, resnet56, seeded, vgg16_bn

SETTINGS = CompressionSettings(calibration_images=16, bias_correction=False, importance="l1")
_PLAN = Plan(precision=0.02, max_seconds=8.0)
RULE = {
    "match": "*",
    "kinds": ["conv", "linear"],
    "prune_ratio": [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75],
    "weight_bits": [32, 8],
    "activation_bits": [32, 8],
    "rank_ratio": [None, 0.75, 0.5, 0.25],
}


def mobilenet_v2() -> nn.Module:
    """Torchvision's, with fresh weights."""
    from autocompress.workloads.imagenet import mobilenet_v2 as torchvisions

    return torchvisions(weights="")


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (resnet20, 32),
    "resnet56": (resnet56, 32),
    "vgg16_bn": (vgg16_bn, 32),
    "mobilenet_v2": (mobilenet_v2, 224),
}


@dataclass(frozen=True)
class Subject:
    """A network with fresh weights, and its joint space.

    Args:
        model: in eval mode.
        images: random, to calibrate with.
        inventory, space: of the model.
    """

    model: nn.Module
    images: Split
    inventory: Inventory
    space: Space

    @classmethod
    def of(cls, name: str) -> Subject:
        """One of ``NETWORKS``."""
        factory, size = NETWORKS[name]
        with seeded(0):
            model = factory().eval()
        stored = torch.randn(32, 3, size, size, generator=torch.Generator().manual_seed(0))
        images = Split(stored, torch.zeros(32, dtype=torch.long))
        inventory = take_inventory(model, images.inputs(1))
        return cls(model, images, inventory, SpaceConfig.read({"rules": [RULE]}).bind(inventory))


def exporter(subject: Subject, folder: Path) -> Any:
    """What builds and exports the model of a policy, as a study's evaluator does it."""
    images = subject.images
    bank = LayerBank.build(subject.model, subject.inventory, images, SETTINGS)
    example = images.inputs(1)

    def variant(policy: Policy) -> Path:
        compressed = bank.stitch(policy, solve=False)
        if compressed.quantized:
            compressed = calibrate(compressed, images.inputs(16))
        return export(compressed, folder / f"{policy.digest[:16]}.onnx", example).path

    return variant


def random_policies(space: Space, count: int, seed: int) -> list[Policy]:
    """Every choice drawn by itself, evenly."""
    rng = np.random.default_rng(seed)
    return [
        Policy(space.decode([int(rng.integers(len(c.levels))) for c in space.choices]).layers)
        for _ in range(count)
    ]


def measured(
    target: Target,
    policies: Sequence[Policy],
    variant: Any,
    baseline: Path,
    plan: Plan,
    quiet: QuietSpeed,
) -> list[Timing]:
    """Timings beside the uncompressed model, six models at a time, as a study takes them."""
    found = []
    for start in range(0, len(policies), 6):
        files = [variant(policy) for policy in policies[start : start + 6]]
        found += paired_timings(target, files, baseline, plan=plan, quiet=quiet)
        for file in files:
            file.unlink(missing_ok=True)
    return found


def judge(name: str, held_out: int, variants: int, plan: Plan) -> dict[str, Any]:
    """One network: build the model, then compare its predictions with what is measured."""
    subject = Subject.of(name)
    inventory, space = subject.inventory, subject.space
    target = get_target("onnxruntime")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        variant, quiet = exporter(subject, folder), QuietSpeed()
        baseline = variant(Policy())
        start = time.perf_counter()
        predictor = LatencyModel.build(
            target,
            inventory,
            space,
            variant,
            folder / "cache",
            settings=SETTINGS,
            baseline=baseline,
            variants=variants,
            quiet=quiet,
        )
        build_s = time.perf_counter() - start
        policies = random_policies(space, held_out, seed=99)
        start = time.perf_counter()
        predicted = [predictor.predict(p) for p in policies]
        predict_s = (time.perf_counter() - start) / len(policies)
        timings = measured(target, policies, variant, baseline, plan, quiet)
    true = np.array([timing.ratio for timing in timings])
    share = np.array([ms for ms, _ in predicted]) / predictor.baseline_ms
    sigma = np.array([s for _, s in predicted]) / predictor.baseline_ms
    return {
        "network": name,
        "policies": held_out,
        "variants": variants,
        "kernels": len(predictor.table.times),
        "baseline_ms": predictor.baseline_ms,
        "mean_abs_error_percent": float(100 * np.abs(share - true).mean()),
        "bias_percent": float(100 * (share - true).mean()),
        "spearman": float(spearmanr(share, true).statistic),
        "within_1.64_sigma": float((true <= share + 1.64 * sigma).mean()),
        "disturbed": sum(timing.disturbed for timing in timings),
        "measured_ratio_low": float(true.min()),
        "measured_ratio_high": float(true.max()),
        "build_s": build_s,
        "predict_us": predict_s * 1e6,
    }


def main() -> None:
    """Judge the networks asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 only, 18 policies")
    parser.add_argument("--network", choices=list(NETWORKS), action="append")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = asked.network or (["resnet20"] if asked.quick else list(NETWORKS))
    held_out, variants = (18, 12) if asked.quick else (60, 24)
    plan = Plan(precision=0.03, max_seconds=3.0) if asked.quick else _PLAN
    rows = [judge(name, held_out, variants, plan) for name in names]
    if asked.json:
        print(json.dumps({"latency_model": rows}))
        return
    for row in rows:
        print(
            f"{row['network']:14} error {row['mean_abs_error_percent']:.1f} % of "
            f"{row['baseline_ms']:.2f} ms, Spearman {row['spearman']:.3f}, "
            f"{row['kernels']} kernels, built in {row['build_s']:.0f} s"
        )


if __name__ == "__main__":
    main()

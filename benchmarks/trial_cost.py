"""Where the time of one trial goes: stitch, calibrate, export, open, score, time, gate.

Random joint policies of a network run through the steps that a study's evaluator takes. Every step
is timed by itself; the medians over the policies are printed. Weights are random: a step's time
does not depend on them.

    python benchmarks/trial_cost.py --json [--quick] [--network resnet56]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.measure.gate import inspect_file
from autocompress.measure.latency import paired_timing
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import Plan
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.quality.answers import file_answers
from autocompress.quality.score import score
from autocompress.targets import get_target
from autocompress.task.data import Split
from autocompress.workloads.models import resnet20, resnet56, seeded, vgg16_bn

NETWORKS = {"resnet20": resnet20, "resnet56": resnet56, "vgg16_bn": vgg16_bn}
_RULE = {
    "match": "*",
    "kinds": ["conv", "linear"],
    "prune_ratio": [0, 0.25, 0.5, 0.75],
    "weight_bits": [32, 8],
    "activation_bits": [32, 8],
    "rank_ratio": [None, 0.5],
}


class Stopwatch:
    """Seconds by step, one entry per policy."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block."""
        begin = time.perf_counter()
        yield
        self.times[name].append(time.perf_counter() - begin)


def one_trial(
    watch: Stopwatch,
    bank: LayerBank,
    policy: Policy,
    images: Split,
    baseline: Path,
    settings: Any,
    quiet: QuietSpeed,
) -> None:
    """The steps of a trial, in their order; ``quiet`` learns from trial to trial, as in a study."""
    target = get_target("onnxruntime")
    path = baseline.with_name("trial.onnx")
    with watch.step("stitch"):
        compressed = bank.stitch(policy)
    calibration = images.inputs(settings.calibrating(bank.inventory.macs, len(images)))
    with watch.step("calibrate"):
        if compressed.quantized:
            compressed = calibrate(compressed, calibration)
    with watch.step("export"):
        export(compressed, path, images.inputs(1))
    with watch.step("open"), closing(target.open(path)):
        pass
    with watch.step("score"):
        score(file_answers(target, path, images))
    with watch.step("time"):
        timing = paired_timing(target, path, baseline, plan=Plan(max_seconds=3.0), quiet=quiet)
    with watch.step("gate"):
        inspect_file(target, path, compressed).judged(timing)


def measure(name: str, policies: int, count: int) -> dict[str, Any]:
    """Median seconds by step for one network."""
    with seeded(0):
        model = NETWORKS[name]().eval()
    stored = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = Split(stored, torch.zeros(count, dtype=torch.long))
    settings = CompressionSettings(calibration_images=min(512, count))
    inventory = take_inventory(model, images.inputs(1))
    space = SpaceConfig.read({"rules": [_RULE]}).bind(inventory)
    rng = np.random.default_rng(0)
    watch, quiet = Stopwatch(), QuietSpeed()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        bank = LayerBank.build(model, inventory, images, settings)
        bank_s = time.perf_counter() - begin
        baseline = Path(folder) / "baseline.onnx"
        export(bank.stitch(Policy()), baseline, images.inputs(1))
        for _ in range(policies):
            drawn = space.decode([int(rng.integers(len(c.levels))) for c in space.choices])
            one_trial(watch, bank, Policy(drawn.layers), images, baseline, settings, quiet)
    steps = {f"{step}_s": median(times) for step, times in watch.times.items()}
    return {
        "network": name,
        "policies": policies,
        "images": count,
        "bank_s": bank_s,
        **steps,
        "export_and_open_s": median(np.add(watch.times["export"], watch.times["open"]).tolist()),
        "trial_s": sum(steps.values()),
    }


def main() -> None:
    """Measure the networks asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="3 policies, 512 images")
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet56")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(asked.network, *((3, 512) if asked.quick else (12, 5000)))
    if asked.json:
        print(json.dumps({"trial_cost": found}))
        return
    for key, value in found.items():
        print(f"{key:18} {value:.3f}" if isinstance(value, float) else f"{key:18} {value}")


if __name__ == "__main__":
    main()

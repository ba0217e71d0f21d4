"""Data that do not fit: how much memory a study's steps over 20 GB of lazy images take.

Images are made up when they are asked for. The steps are those that read data: fingerprint, input
moments, calibration with ranges, screening outputs, and the scores of the model and of its exported
file on every image.

    python benchmarks/streaming.py             # 20 GB of uint8 images, 160 x 160
    python benchmarks/streaming.py --quick     # 1 GB
    python benchmarks/streaming.py --json      # plain data

Exit code 1 where the resident memory went over the limit (3 GB).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import file_answers, module_answers
from autocompress.targets import get_target
from autocompress.task.calling import call
from autocompress.task.data import Data, feed
from autocompress.task.nested import tensors

SIDE = 160
LIMIT_GB = 3.0


class LazyImages(Dataset[Any]):
    """Random images, the same for the same number, made when they are asked for.

    Args:
        count: how many.
        side: of the square.
    """

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side
        self.noise = torch.randint(256, (3 * side * side + 4096,), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        start = index * 31 % 4096
        size = 3 * self.side * self.side
        image = self.noise[start : start + size].view(3, self.side, self.side) + index % 7
        return image, index % 10


def scaled(stored: Tensor) -> Tensor:
    """From stored images to the model's inputs."""
    return stored.float() / 255 - 0.5


def network() -> nn.Module:
    """Small, so that reading is what takes time and memory."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()


def resident_gb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def steps(gigabytes: float, memory: str) -> list[dict[str, Any]]:
    """Run the steps; each with its seconds and the peak memory after it."""
    count = int(gigabytes * 1e9) // (3 * SIDE * SIDE)
    found: list[dict[str, Any]] = [{"step": "start", "seconds": 0.0, "peak_gb": resident_gb()}]

    def note(step: str, begin: float, **more: Any) -> None:
        seconds = time.perf_counter() - begin
        found.append({"step": step, "seconds": seconds, "peak_gb": resident_gb(), **more})

    begin = time.perf_counter()
    data = Data.wrap({"train": LazyImages(count, SIDE), "memory": memory})
    splits = {name: getattr(data, name).prepared_by(scaled) for name in ("train", "val", "test")}
    note("splits", begin, samples={name: len(split) for name, split in splits.items()})
    train, model, settings = splits["train"], network(), CompressionSettings()
    begin = time.perf_counter()
    inventory = take_inventory(model, train.inputs(1))
    bank = LayerBank.build(model, inventory, train, settings)
    note("moments and layer bank", begin)
    begin = time.perf_counter()
    layers = {n: LayerPolicy(weight_bits=8, activation_bits=8) for n in ("0", "2", "6")}
    sample = train.sample(settings.calibrating(inventory.macs, len(train)), settings.seed)
    compressed = calibrate(bank.stitch(Policy(layers)), feed(sample, data.memory))
    note("calibration and ranges", begin)
    begin = time.perf_counter()
    seen = sum(len(tensors(o)[0]) for o, _ in module_answers(partial(call, model), train))
    note("outputs on all training images", begin, samples=seen)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(compressed, path, train.inputs(2))
        begin = time.perf_counter()
        target = get_target("onnxruntime")
        right = total = 0
        for outputs, targets in file_answers(target, path, splits["val"]):
            right += int((outputs.argmax(1) == targets).sum())
            total += len(targets)
        note("score of the file on val", begin, samples=total, accuracy=right / total)
    held = data.memory.taken if data.memory is not None else 0
    found[-1]["held_gb"] = held / 1e9
    return found


def main() -> int:
    """Run, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="1 GB of images")
    parser.add_argument("--json", action="store_true", help="plain data on standard output")
    parser.add_argument("--memory", default=None, help="budget of decoded samples")
    given = parser.parse_args()
    gigabytes, memory = (1.0, "200MB") if given.quick else (20.0, "1GB")
    found = steps(gigabytes, given.memory or memory)
    peak = max(step["peak_gb"] for step in found)
    result = {"gigabytes": gigabytes, "peak_gb": peak, "limit_gb": LIMIT_GB, "steps": found}
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        for step in found:
            print(f"{step['step']:<32} {step['seconds']:7.1f} s   peak {step['peak_gb']:.2f} GB")
        print(f"{gigabytes:g} GB of images, peak {peak:.2f} GB (limit {LIMIT_GB:g} GB)")
    return int(peak > LIMIT_GB)


if __name__ == "__main__":
    sys.exit(main())

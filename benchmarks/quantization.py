"""What fewer bits cost without training: accuracy, agreement with the simulation, kernels, time.

Trained networks on CIFAR-10, every layer alike. For each way: accuracy of the exported file in
its runtime on val with the paired difference to the float file, the share of images to which the
file and its simulation in torch give the same answer, how many operators of the runtime's own
profile are integer and how many multiply in 32 bits, latency beside the float file in the same
runtime, size. bfloat16 is a program of torch, everything else a file of ONNX Runtime.
Data and weights are found through AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS.

    python benchmarks/quantization.py --json [--quick] [--network resnet20]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.measure.latency import paired_timing
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.saturation import settled
from autocompress.quality.score import Accuracy, paired, score
from autocompress.targets import KernelClass, Target, get_target
from autocompress.targets.base import random_inputs
from autocompress.task.data import Data, Split
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.quantize import simulate
from autocompress.workloads.data import image_folder
from autocompress.workloads.models import load_weights, resnet20, resnet56, vgg16_bn

NETWORKS = {"resnet20": resnet20, "resnet56": resnet56, "vgg16_bn": vgg16_bn}
STATIC = LayerPolicy(weight_bits=8, activation_bits=8)
HALF = LayerPolicy(weight_bits=16, activation_bits=16)
#: name to the layers' policy and the settings that differ from the defaults
WAYS: dict[str, tuple[LayerPolicy, dict[str, Any]]] = {
    "int8": (STATIC, {}),
    "int8, min-max ranges": (STATIC, {"ranges": "minmax"}),
    "int8, percentile ranges": (STATIC, {"ranges": "percentile"}),
    "int8, biases not corrected": (STATIC, {"bias_correction": False}),
    "int8, ranges at run time": (
        LayerPolicy(weight_bits=8, activation_bits=8, activation_scaling="dynamic"),
        {},
    ),
    "8-bit weights only": (LayerPolicy(weight_bits=8), {}),
    "4-bit weights only, nearest": (LayerPolicy(weight_bits=4), {}),
    "4-bit weights only, GPTQ": (LayerPolicy(weight_bits=4), {"weight_rounding": "gptq"}),
    "float16": (HALF, {}),
    "bfloat16": (HALF, {"half_format": "bfloat16"}),
}


def trained(name: str) -> nn.Module:
    """A shared network in eval mode."""
    model = NETWORKS[name]()
    weights = Path(os.environ["AUTOCOMPRESS_WEIGHTS"]) / f"{name}_cifar10.safetensors"
    load_weights(model, str(weights))
    return model.eval()


def made(model: nn.Module, data: Data, layer: LayerPolicy, changed: dict[str, Any]) -> Compressed:
    """All layers at one precision, calibrated."""
    settings = CompressionSettings.model_validate(changed)
    settings = settled(settings, get_target("onnxruntime"))
    inventory = take_inventory(model, data.train.inputs(1))
    names = [spec.name for spec in inventory.layers]
    compressed = Compressed(
        model,
        Policy(dict.fromkeys(names, layer)),
        settings,
        precisions=dict.fromkeys(names, Precision.of(layer, settings)),
    )
    return calibrate(
        compressed,
        data.train.sample(settings.calibrating(inventory.macs, len(data.train)), 0).inputs(),
    )


def file_outputs(target: Target, path: Path, split: Split) -> Tensor:
    """All answers of a file."""
    with closing(target.open(path, threads=os.cpu_count() or 1, fixed=False)) as session:
        batches = split.batches(250)
        return torch.cat([torch.from_numpy(session.run([x.numpy()])[0]) for x, _ in batches])


def module_outputs(module: nn.Module, split: Split) -> Tensor:
    """All answers of a module."""
    with torch.inference_mode():
        return torch.cat([module(x) for x, _ in split.batches(250)])


def kernels(target: Target, path: Path) -> dict[str, int]:
    """Operators in the runtime's profile: integer ones, and float multiplications."""
    with closing(target.open(path)) as session:
        nodes = session.profile(random_inputs(session.inputs, 1)).nodes
    kinds = [target.classify(node) for node in nodes]
    return {
        "integer_kernels": kinds.count(KernelClass.INTEGER),
        "float_multiplications": sum(
            kind is KernelClass.FLOAT and node.inputs[0][0] == "float"
            for kind, node in zip(kinds, nodes, strict=True)
        ),
    }


def judge(name: str, data: Data, ways: list[str], limit: int | None) -> list[dict[str, Any]]:
    """One row per way, the float file first."""
    model = trained(name)
    val = data.val if limit is None else data.val.sample(limit)
    targets = torch.cat([t for _, t in val.batches(250)])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        floats = {}
        for runtime in dict.fromkeys(_runtime(way) for way in ways):
            target = get_target(runtime)
            base = Path(folder) / f"float{target.suffix}"
            export(Compressed(model, Policy(), CompressionSettings()), base, data.train.inputs(1))
            found = score([(file_outputs(target, base, val), targets)])
            floats[runtime] = target, base, found
            rows.append({"network": name, "way": f"float, {runtime}", **_accuracy(found)})
        for way in ways:
            target, base, float_score = floats[_runtime(way)]
            compressed = made(model, data, *WAYS[way])
            path = Path(folder) / f"quantized{target.suffix}"
            written = export(compressed, path, data.train.inputs(1))
            outputs = file_outputs(target, path, val)
            simulated = module_outputs(simulate(compressed), val)
            found = score([(outputs, targets)])
            difference = paired(found, float_score)
            timing = paired_timing(target, path, base)
            row = {
                "network": name,
                "way": way,
                **_accuracy(found),
                "points_gained": round(100 * difference.difference, 2),
                "points_gained_95": [
                    round(100 * difference.low, 2),
                    round(100 * difference.high, 2),
                ],
                "agrees_with_simulation": round(
                    float((outputs.argmax(1) == simulated.argmax(1)).float().mean()), 4
                ),
                **kernels(target, path),
                "latency_ratio": round(timing.ratio, 3),
                "size_ratio": round(written.size_bytes / base.stat().st_size, 3),
            }
            print(json.dumps(row), file=sys.stderr)
            rows.append(row)
    return rows


def _runtime(way: str) -> str:
    return "torch" if way == "bfloat16" else "onnxruntime"


def _accuracy(found: Accuracy) -> dict[str, float]:
    return {"accuracy": round(found.value, 4), "accuracy_stderr": round(found.stderr, 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 in int8, 1,000 images")
    parser.add_argument("--network", choices=list(NETWORKS), action="append")
    parser.add_argument("--way", choices=list(WAYS), action="append")
    args = parser.parse_args()
    data = image_folder(str(Path(os.environ["AUTOCOMPRESS_DATA"]) / "cifar10"))
    names = args.network or (["resnet20"] if args.quick else list(NETWORKS))
    ways = args.way or (["int8"] if args.quick else list(WAYS))
    rows = [row for name in names for row in judge(name, data, ways, 1000 if args.quick else None)]
    print(json.dumps({"quantization": rows}, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

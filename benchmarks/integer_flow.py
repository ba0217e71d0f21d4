"""What lies between integer layers: conversions, and the operators that they are made for.

Every layer that can be is 8 bits (static ranges). For each network: latency of the file beside the
float one in the same runtime (interleaved, one thread, one image or text), the share of the
kernels' time in conversions (quantize, dequantize, pad, transpose, reorder), and time by operator.
Weights are trained where a package has them, else random: kernels take the same time. Processors
without 8-bit dot products (VNNI) gain much less; ``dot_products`` says whether there were any.

    python benchmarks/integer_flow.py --json [--quick] [--network resnet20]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.machine.facts import machine_facts
from autocompress.measure.conversions import conversions
from autocompress.measure.latency import paired_timing
from autocompress.measure.sampling import Plan
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.saturation import settled
from autocompress.targets import get_target
from autocompress.targets.lengths import drawn_inputs
from autocompress.techniques.compressed import Compressed, Precision

INT8 = LayerPolicy(weight_bits=8, activation_bits=8)


class _Unit(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inside: int, outside: int, size: int = 1, step: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, size, step, size // 2, bias=False),
            nn.BatchNorm2d(outside),
            nn.SiLU(),
        )


class _Split(nn.Module):
    """Halves of the channels, one of them through residual units, joined again (YOLOv8's C2f)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        half = outside // 2
        self.first = _Unit(inside, outside)
        self.inner = nn.Sequential(_Unit(half, half, 3), _Unit(half, half, 3))
        self.last = _Unit(3 * half, outside)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        joined: Tensor = self.last(torch.cat([left, right, right + self.inner(right)], 1))
        return joined


class YoloNeck(nn.Module):
    """Backbone and two-way neck of a small detector: splits, nearest upsampling, concatenations."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        a, b, c = 2 * width, 4 * width, 8 * width
        self.stem = nn.Sequential(_Unit(3, width, 3, 2), _Unit(width, a, 3, 2))
        self.small = nn.Sequential(_Unit(a, a, 3, 2), _Split(a, a))
        self.middle = nn.Sequential(_Unit(a, b, 3, 2), _Split(b, b))
        self.large = nn.Sequential(_Unit(b, c, 3, 2), _Split(c, c))
        self.pooled = _Unit(4 * c, c)
        self.up_middle, self.up_small = _Split(c + b, b), _Split(b + a, a)
        self.down, self.down_middle = _Unit(a, a, 3, 2), _Split(a + b, b)
        self.heads = nn.ModuleList([nn.Conv2d(a, 64, 1), nn.Conv2d(b, 64, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        small = self.small(self.stem(x))
        middle = self.middle(small)
        large = self.large(middle)
        pooled = [large]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        large = self.pooled(torch.cat(pooled, 1))
        middle = self.up_middle(torch.cat([F.interpolate(large, scale_factor=2.0), middle], 1))
        small = self.up_small(torch.cat([F.interpolate(middle, scale_factor=2.0), small], 1))
        middle = self.down_middle(torch.cat([self.down(small), middle], 1))
        return self.heads[0](small), self.heads[1](middle)


def _images(size: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, 3, size, size)


def _tokens(count: int) -> Tensor:
    return torch.randint(1, 30522, (count, 128))


def _efficientnet_lite0() -> nn.Module:
    from autocompress.workloads.efficientnet import efficientnet_lite0

    return efficientnet_lite0()


def _mobilenet_v3() -> nn.Module:
    from torchvision.models import mobilenet_v3_large

    model: nn.Module = mobilenet_v3_large()
    return model


def _minilm() -> nn.Module:
    from autocompress.workloads.minilm import minilm

    return minilm()


def _vit() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    return model


def _resnet20() -> nn.Module:
    from autocompress.workloads.models import resnet20

    return resnet20()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet20": (_resnet20, _images(32)),
    "efficientnet_lite0": (_efficientnet_lite0, _images(224)),
    "mobilenet_v3_large": (_mobilenet_v3, _images(224)),
    "yolo_neck": (YoloNeck, _images(256)),
    "minilm": (_minilm, _tokens),
    "vit_tiny": (_vit, _images(224)),
}


def all_int8(model: nn.Module, inputs: Tensor) -> Compressed:
    """Every layer in 8 bits that can be, calibrated."""
    settings = settled(CompressionSettings(), get_target("onnxruntime"))
    names = [s.name for s in take_inventory(model, inputs[:1]).layers if not s.why_not("quantize")]
    precision = Precision.of(INT8, settings)
    policy = Policy(dict.fromkeys(names, INT8))
    made = Compressed(model, policy, settings, precisions=dict.fromkeys(names, precision))
    return calibrate(made, inputs)


def judge(name: str, folder: Path, seconds: float, keep: Path | None) -> dict[str, Any]:
    """One network's figures."""
    torch.manual_seed(0)
    factory, draw = NETWORKS[name]
    model, inputs = factory().eval(), draw(8)
    target = get_target({"runtime": "onnxruntime", "threads": 1, "batch": 1})
    floats, integers = folder / f"{name}_float.onnx", (keep or folder) / f"{name}_int8.onnx"
    export(Compressed(model, Policy(), CompressionSettings()), floats, inputs[:2])
    export(all_int8(model, inputs), integers, inputs[:2])
    timing = paired_timing(target, integers, floats, plan=Plan(max_seconds=seconds))
    profiles = {}
    for key, path in (("float", floats), ("int8", integers)):
        with closing(target.open(path)) as session:
            profiles[key] = session.profile(drawn_inputs(session, target.config)[0], runs=15)
    spent = conversions(target, profiles["int8"])
    return {
        "network": name,
        "latency_ratio": round(timing.ratio, 3),
        "ratio_95": [round(timing.ratio_low, 3), round(timing.ratio_high, 3)],
        "float_ms": round(timing.baseline_ms, 3),
        "conversions": round(spent.share, 3),
        "between": spent.between,
        **{
            f"{key}_operators": {o: [n, round(ms, 3)] for o, (n, ms) in found.by_op().items()}
            for key, found in profiles.items()
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="ResNet-20, two seconds")
    parser.add_argument("--network", choices=list(NETWORKS), action="append")
    parser.add_argument("--keep", type=Path, help="a folder for the integer files")
    args = parser.parse_args()
    names = args.network or (["resnet20"] if args.quick else list(NETWORKS))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rows.append(judge(name, Path(folder), 2.0 if args.quick else 10.0, args.keep))
            print(json.dumps(rows[-1]), file=sys.stderr)
    dots = not get_target("onnxruntime").products_overflow()
    report = {"integer_flow": rows, "dot_products": dots, "machine": machine_facts()}
    print(json.dumps(report, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

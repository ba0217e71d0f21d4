"""Weights in few bits beside float activations: a scale per output channel, or per block of inputs.

Kernels: products of MiniLM's sizes on one thread in ONNX Runtime, each as float, as int4 behind a
DequantizeLinear (of a ``MatMul`` and of a ``Gemm``) and as ``MatMulNBits``; times as ratios to
float, taken in turn, and the error beside the product with the rounded weights. Accuracy: MiniLM
with a fixed head that tells spam, all linear layers and attentions alike, exported and run by ONNX
Runtime on mails of val and test; the cosine of its vectors to the original's (simulated, on some of
the mails), size and latency. Mails are found through AUTOCOMPRESS_DATA.

    python benchmarks/weight_blocks.py --json [--part kernels|minilm] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autocompress.build.calibrate import calibrate
from autocompress.exporters.onnx_blocks import pack
from autocompress.exporters.write import export
from autocompress.measure.latency import paired_timing
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.score import paired, score
from autocompress.targets import Target, get_target
from autocompress.task.data import Split
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.quantize import round_weight, simulate
from autocompress.workloads.minilm import TextClassifier, minilm_spam, spam

SIZES = ((384, 384), (384, 1536), (1536, 384))
"""Inputs and outputs."""
KERNELS = [
    ("float", 32, 0, 0),
    ("MatMul", 4, 0, 0),
    ("Gemm", 4, 0, 0),
    ("MatMulNBits", 4, 0, 1),
    *(("MatMulNBits", 4, block, level) for block in (16, 32, 128) for level in (0, 1, 4)),
    *(("MatMulNBits", bits, 32, level) for bits in (2, 8) for level in (1, 4)),
]
"""Operator, bits, block (0 for one scale per output) and the kernel's accuracy level."""
WAYS: dict[str, tuple[int, int, str]] = {
    "4 bits, nearest": (4, 0, "nearest"),
    "4 bits, GPTQ": (4, 0, "auto"),
    "4 bits, blocks of 128, GPTQ": (4, 128, "auto"),
    "4 bits, blocks of 32, nearest": (4, 32, "nearest"),
    "4 bits, blocks of 32, GPTQ": (4, 32, "auto"),
    "4 bits, blocks of 16, GPTQ": (4, 16, "auto"),
    "3 bits, blocks of 32, GPTQ": (3, 32, "auto"),
    "2 bits, blocks of 16, GPTQ": (2, 16, "auto"),
}
"""Bits, block and rounding."""


def product(way: tuple[str, int, int, int], weight: NDArray[np.float32], rows: int) -> bytes:
    """A file with one product of ``(rows, inputs)``."""
    kind, bits, block, level = way
    outputs, inputs = weight.shape
    held, nodes = [], []
    if kind == "MatMulNBits":
        packed, scales = pack(weight, bits, block, bits)
        held = [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scales, "s")]
        options = {"K": inputs, "N": outputs, "bits": bits, "block_size": block or 128}
        options["accuracy_level"] = level
        nodes.append(
            helper.make_node(kind, ["x", "w", "s"], ["y"], domain="com.microsoft", **options)
        )
    elif kind != "float":
        scale, stays = np.abs(weight).max(1) / 7, kind == "Gemm"
        levels = np.round(weight / scale[:, None]).astype(np.int8)
        flat = (levels if stays else levels.T).reshape(-1)
        nibbles = ((flat[0::2] & 15) | ((flat[1::2] & 15) << 4)).astype(np.uint8)
        shape = [outputs, inputs] if stays else [inputs, outputs]
        held = [
            helper.make_tensor("w", TensorProto.INT4, shape, nibbles.tobytes(), raw=True),
            numpy_helper.from_array(scale.astype(np.float32), "s"),
        ]
        nodes.append(helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=int(not stays)))
        options = {"transB": 1} if stays else {}
        nodes.append(helper.make_node(kind, ["x", "d"], ["y"], **options))
    else:
        held = [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")]
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, size])
        for name, size in (("x", inputs), ("y", outputs))
    ]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    written: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return written


def opened(model: bytes) -> Any:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def kernels(rows: int, size: tuple[int, int], seconds: float) -> list[dict[str, Any]]:
    """One row per kernel, the float one first."""
    inputs, outputs = size
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((outputs, inputs)).astype(np.float32)
    feed = {"x": draw.standard_normal((rows, inputs)).astype(np.float32)}
    sessions = [opened(product(way, weight, rows)) for way in KERNELS]
    repeats = max(1, 32 // rows)
    found: list[list[float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(found) < 5:
        found.append(_round(sessions, feed, repeats))
    times = np.array(found[2:])  # the first rounds warm up
    rounds = times / times[:, :1]
    told = []
    for place, (kind, bits, block, level) in enumerate(KERNELS):
        rounded = torch.from_numpy(weight)
        if bits < 32:
            rounded = round_weight(rounded, bits, block=block)
        wanted = feed["x"] @ rounded.numpy().T
        answer = sessions[place].run(None, feed)[0]
        told.append(
            {
                "rows": rows,
                "inputs": inputs,
                "outputs": outputs,
                "kernel": kind,
                "bits": bits,
                "block": block,
                "accuracy_level": level,
                "ms": round(float(np.median(times[:, place])), 4),
                "ratio": round(float(np.median(rounds[:, place])), 3),
                "error": float(f"{np.linalg.norm(answer - wanted) / np.linalg.norm(wanted):.1e}"),
            }
        )
        print(json.dumps(told[-1]), file=sys.stderr)
    return told


def _round(sessions: list[Any], feed: dict[str, Any], repeats: int) -> list[float]:
    """Milliseconds of each session, in turn."""
    spent = []
    for session in sessions:
        begin = time.perf_counter()
        for _ in range(repeats):
            session.run(None, feed)
        spent.append((time.perf_counter() - begin) * 1e3 / repeats)
    return spent


def compressed(model: nn.Module, train: Split, way: tuple[int, int, str], count: int) -> Compressed:
    """MiniLM with all linear layers and attentions alike, calibrated."""
    bits, block, rounding = way
    given = {"weight_rounding": rounding, "calibration_images": count}
    settings = CompressionSettings.model_validate(given)
    inventory = take_inventory(model, train.inputs(1))
    names = [x.name for x in inventory.layers if x.kind in ("linear", "attention")]
    layer = LayerPolicy(weight_bits=bits, weight_block=block)
    precisions = dict.fromkeys(names, Precision.of(layer, settings))
    made = Compressed(model, Policy(dict.fromkeys(names, layer)), settings, precisions=precisions)
    return calibrate(made, train.sample(count, 0).inputs())


@torch.no_grad()
def vectors(module: nn.Module, mails: Tensor) -> Tensor:
    """One for each mail."""
    assert isinstance(module, TextClassifier)
    return torch.cat([module.embed(part) for part in mails.split(32)])


def answers(target: Target, path: Path, mails: Tensor) -> Tensor:
    """Logits of a file."""
    with closing(target.open(path, threads=os.cpu_count() or 1, fixed=False)) as session:
        parts = [session.run([part.numpy()])[0] for part in mails.split(32)]
    return torch.cat([torch.from_numpy(part) for part in parts])


def minilm(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per way, the float file first."""
    root = os.environ["AUTOCOMPRESS_DATA"]
    data, target = spam(root), get_target("onnxruntime")
    model = minilm_spam(root, texts=2000).eval()
    held = [data.val.sample(args.mails, 0), data.test.sample(args.mails, 0)]
    mails, labels = (
        torch.cat([s.inputs() for s in held]),
        torch.cat([torch.as_tensor(s.targets) for s in held]),
    )
    seen = mails[: args.mails // 2]
    whole, rows = vectors(model, seen), []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "float.onnx"
        plain = Compressed(model, Policy(), CompressionSettings())
        export(plain, base, data.train.inputs(2))
        reference = score([(answers(target, base, mails), labels)])
        rows.append({"way": "float", "accuracy": reference.value, "stderr": reference.stderr})
        for name in args.way or WAYS:
            start = time.process_time()
            made = compressed(model, data.train, WAYS[name], args.calibration)
            seconds = time.process_time() - start
            path = Path(folder) / "rounded.onnx"
            written = export(made, path, data.train.inputs(2))
            found = score([(answers(target, path, mails), labels)])
            gained = paired(found, reference)
            close = torch.cosine_similarity(vectors(simulate(made), seen), whole)
            row: dict[str, Any] = {
                "way": name,
                "accuracy": round(found.value, 4),
                "points_gained": round(100 * gained.difference, 2),
                "points_gained_95": [round(100 * gained.low, 2), round(100 * gained.high, 2)],
                "cosine": round(float(close.mean()), 4),
                "size_ratio": round(written.size_bytes / base.stat().st_size, 3),
                "product_bytes": _product_bytes(path),
                "calibration_cpu_seconds": round(seconds, 1),
            }
            if not args.untimed:
                row["latency_ratio"] = round(paired_timing(target, path, base).ratio, 3)
            print(json.dumps(row), file=sys.stderr)
            rows.append(row)
    return rows


def _product_bytes(path: Path) -> int:
    """Bytes of a file beside its table of words, which stays float."""
    sizes = sorted(len(i.raw_data) for i in onnx.load(path).graph.initializer)
    return sum(sizes[:-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="short timing, few mails")
    parser.add_argument("--part", choices=("kernels", "minilm"), action="append")
    parser.add_argument("--way", choices=list(WAYS), action="append")
    parser.add_argument("--mails", type=int, default=400, help="of val, and of test")
    parser.add_argument("--calibration", type=int, default=128, help="training mails")
    parser.add_argument("--untimed", action="store_true", help="no latency of MiniLM")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.mails, args.calibration = 64, 64
    parts = args.part or ["kernels", "minilm"]
    told: dict[str, Any] = {"mails": 2 * args.mails}
    if "kernels" in parts:
        seconds = 0.5 if args.quick else 4.0
        told["kernels"] = [
            row for rows in (1, 128) for size in SIZES for row in kernels(rows, size, seconds)
        ]
    if "minilm" in parts:
        told["minilm"] = minilm(args)
    print(json.dumps(told, indent=None if args.json else 1))


if __name__ == "__main__":
    main()

"""What every tool is given: the model, the images, the clock, and the same export and timing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from autocompress.exporters.write import export
from autocompress.measure.latency import paired_timing
from autocompress.measure.sampling import Plan
from autocompress.policy.policy import Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import file_answers, module_answers
from autocompress.quality.score import score
from autocompress.recover.finetune import fine_tune
from autocompress.targets import get_target
from autocompress.targets.base import Target
from autocompress.task.data import Data
from autocompress.techniques.compressed import Compressed
from autocompress.workloads.data import image_folder
from autocompress.workloads.models import load_weights, resnet20, resnet56, vgg16_bn
from contest.rows import affordable_epochs, mildest

NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet20": (resnet20, "resnet20_cifar10.safetensors"),
    "resnet56": (resnet56, "resnet56_cifar10.safetensors"),
    "vgg16": (vgg16_bn, "vgg16_bn_cifar10.safetensors"),
}
MARGIN = 0.98
"""Tools aim at this share of the budget, so that the next timing does not find them over it."""
_BATCH = 128
_RESERVE_S = 8.0
"""For the last export and its calibration."""
_SLOWER = 1.1
"""Training is planned as if it were so much slower."""
_LOOKS, _LOOK_STEPS = 3, 12
_PROBES = 6


def target() -> Target:
    """Where everything is timed: ONNX Runtime, one thread, batch 1."""
    return get_target({"runtime": "onnxruntime", "threads": 1, "batch": 1})


def write_onnx(model: nn.Module, example: Tensor, path: Path) -> Path:
    """Export as autocompress exports: batch norms folded, shortcuts as convolutions."""
    export(Compressed(model.eval(), Policy(), CompressionSettings()), path, example)
    return path


def input_name(path: Path) -> str:
    """Of a file with one input."""
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


class Task:
    """One tool's work: what it has, and how much time.

    Args:
        network: a key of ``NETWORKS``.
        latency: wanted latency / uncompressed latency.
        seconds: for everything, counted from ``begun``.
        begun: on ``time.time()``.
        folder: for files.
    """

    def __init__(
        self, network: str, latency: float, seconds: float, begun: float, folder: Path
    ) -> None:
        factory, weights = NETWORKS[network]
        self.network, self.latency, self.folder = network, latency, folder
        self.ends = begun + seconds
        checkpoint = Path(os.environ["AUTOCOMPRESS_WEIGHTS"]) / weights
        self.model = load_weights(factory(), str(checkpoint)).eval()
        self.data: Data = image_folder(str(Path(os.environ["AUTOCOMPRESS_DATA"]) / "cifar10"))
        self.example = self.data.train.inputs(2)
        self.target = target()
        self.base = write_onnx(self.model, self.example, folder / "fp32.onnx")
        self.multiple = 8 if network == "vgg16" else 4
        self.said: list[str] = []

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return self.ends - time.time()

    def say(self, text: str) -> None:
        """Keep what was done, for the row."""
        self.said.append(text)

    def inner(self, model: nn.Module) -> list[str]:
        """Layers whose output channels may go: of residual networks those inside of blocks.

        The shortcuts of these networks pad a fixed number of channels, which no tool here follows.
        """
        convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        if self.network == "vgg16":
            return convolutions
        return [n for n in convolutions if n.endswith("conv1") and "." in n]

    def macs(self, model: nn.Module) -> float:
        """Multiply-adds of one image."""
        from fvcore.nn import FlopCountAnalysis

        counted = FlopCountAnalysis(model, self.example[:1])
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return float(counted.total())

    def val(self, model: nn.Module, images: int | None = None) -> float:
        """Accuracy of a module on val."""
        split = self.data.val if images is None else self.data.val.sample(images, 0)
        return float(score(module_answers(model.eval(), split)).value)

    def val_file(self, path: Path) -> float:
        """Accuracy of a file on val."""
        return float(score(file_answers(self.target, path, self.data.val, threads=1)).value)

    def calibration(self, images: int, batch: int = 1) -> Iterator[Tensor]:
        """Training images, prepared, batch by batch."""
        inputs = self.data.train.sample(images, 0).inputs()
        yield from inputs.split(batch)

    def export(self, model: nn.Module, name: str) -> Path:
        """The float file of a module."""
        return write_onnx(model, self.example, self.folder / f"{name}.onnx")

    def int8(self, path: Path, images: int = 256) -> Path:
        """ONNX Runtime's static quantization, as its documentation recommends it on x86-64 with
        VNNI: pre-processing, QDQ, unsigned activations, signed weights per channel."""
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
            def __init__(self, name: str, batches: Iterator[Tensor]) -> None:
                self.name, self.batches = name, batches

            def get_next(self) -> dict[str, np.ndarray] | None:
                found = next(self.batches, None)
                return None if found is None else {self.name: found.numpy()}

        ready, done = path.with_suffix(".pre.onnx"), path.with_suffix(".int8.onnx")
        quant_pre_process(str(path), str(ready))
        quantize_static(
            str(ready),
            str(done),
            Reader(input_name(path), self.calibration(images, 64)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return done

    def ratio(self, path: Path, seconds: float = 2.0) -> float:
        """Latency of a file / latency of the uncompressed one, interleaved."""
        plan = Plan(precision=0.05, max_seconds=seconds, apart_s=0.2)
        return paired_timing(self.target, path, self.base, plan=plan).ratio

    def aimed(
        self,
        build: Callable[[float], nn.Module],
        file: Callable[[nn.Module], Path] | None = None,
        high: float = 0.9,
    ) -> float:
        """The mildest share to remove with which a tool's file reaches the latency.

        Args:
            build: from a share to a pruned module, untrained.
            file: from a module to what is timed; the int8 file where left out.
            high: largest share.
        """
        write = file or (lambda model: self.int8(self.export(model, "probe"), 64))
        share, found = mildest(
            lambda share: self.ratio(write(build(share))), MARGIN * self.latency, high, _PROBES
        )
        self.say(f"share {share:.3f} by bisection (there {found:.3f}x)")
        return share

    def tuned(self, model: nn.Module, reserve_s: float = _RESERVE_S) -> nn.Module:
        """Fine-tune on labels for all the time that is left.

        The same loop and speed as the recovery of autocompress (SGD, 0.02, cosine, crops and
        flips), without teacher and without fake quantization.
        """
        steps = len(self.data.train) // _BATCH
        look = Schedule(epochs=_LOOK_STEPS / steps, batch_size=_BATCH)
        fine_tune(model, self.data, look)  # the first steps of a process are slower
        looks = []
        for _ in range(_LOOKS):
            start = time.perf_counter()
            fine_tune(model, self.data, look)
            looks.append((time.perf_counter() - start) / _LOOK_STEPS)
        step_s = min(looks)
        epochs = affordable_epochs(self.left_s - reserve_s, _SLOWER * step_s, steps)
        if epochs <= 0:
            self.say("no time to train")
            return model
        done = fine_tune(model, self.data, Schedule(epochs=epochs, batch_size=_BATCH, lr=0.02))
        self.say(f"{epochs:.2f} epochs")
        return done.module

    def loss_backward(self, model: nn.Module, images: int) -> None:
        """Gradients of the loss on training images, for Taylor importance."""
        split = self.data.train.sample(images, 1)
        model.zero_grad()
        for i in range(0, len(split), 128):
            stored, targets = split.take(slice(i, i + 128))
            nn.functional.cross_entropy(model(split.prepare(stored)), targets).backward()

    def finished(self, model: nn.Module) -> Path:
        """Train for the time that is left, then eight bits."""
        return self.int8(self.export(self.tuned(model), "answer"))


Peer = Callable[[Task], tuple[Path, dict[str, Any]]]
"""From the task to the file and to what the row says beside (``settings``, ``version``)."""

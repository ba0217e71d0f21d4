"""ONNX Runtime on the CPU, and on CUDA or TensorRT where those providers are installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from autocompress.errors import TargetUnavailable
from autocompress.targets.base import Availability, Session, TargetConfig
from autocompress.targets.onnx_files import OnnxTarget, free_batch_names, makers
from autocompress.targets.onnx_session import OnnxRuntimeSession
from autocompress.targets.profile import KernelClass, NodeTime, kernel_class

_BY_DEVICE = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ),
    "mps": ("CoreMLExecutionProvider", "CPUExecutionProvider"),
}
#: kernels that do not multiply floats although their name may say so, and those of integers
_CLASSES = {
    "QLinearConv": KernelClass.INTEGER,
    "ConvInteger": KernelClass.INTEGER,
    "QGemm": KernelClass.INTEGER,
    "MatMulInteger": KernelClass.INTEGER,
    "MatMulIntegerToFloat": KernelClass.INTEGER,
    "DynamicQuantizeMatMul": KernelClass.INTEGER,
    "DynamicQuantizeLSTM": KernelClass.INTEGER,
    "QLinearMatMul": KernelClass.INTEGER,
    "QAttention": KernelClass.INTEGER,
    "QuantizeLinear": KernelClass.QUANTIZE,
    "DequantizeLinear": KernelClass.QUANTIZE,
    "DynamicQuantizeLinear": KernelClass.QUANTIZE,
    "Cast": KernelClass.LAYOUT,
    "ReorderInput": KernelClass.LAYOUT,
    "ReorderOutput": KernelClass.LAYOUT,
    "Transpose": KernelClass.LAYOUT,
    "Pad": KernelClass.LAYOUT,
}
_MULTIPLYING = re.compile("conv|gemm|matmul|lstm|gru|attention", re.IGNORECASE)
#: blocked layouts round channel counts up to the width of a vector register, and hide as much
_BLOCKS = (1, 4, 8, 16)


class OnnxRuntimeConfig(TargetConfig):
    """Fields of ``target:`` for ONNX Runtime.

    Args:
        providers: execution providers in order of preference; ``None`` chooses by the device.
    """

    runtime: str = "onnxruntime"
    providers: tuple[str, ...] | None = None


class OnnxRuntimeTarget(OnnxTarget):
    """See ``OnnxTarget``."""

    name = "onnxruntime"
    config_model = OnnxRuntimeConfig
    install = "pip install onnxruntime, or onnxruntime-gpu for CUDA and TensorRT"
    integer_kernels = weight_blocks = True
    packable = True
    config: OnnxRuntimeConfig

    @classmethod
    def present(cls) -> Availability:
        """What ONNX Runtime offers here."""
        import onnxruntime

        here = onnxruntime.get_available_providers()
        devices = tuple(d for d, need in _BY_DEVICE.items() if all(p in here for p in need))
        details = {"providers": list(here)}
        return Availability(cls.name, True, onnxruntime.__version__, devices, details=details)

    def check_device(self, found: Availability) -> None:
        """The providers that are asked for, or those of the device, must be here."""
        here = found.details["providers"]
        device, _, index = self.config.device.partition(":")
        names = self.config.providers or _BY_DEVICE.get(device, ())
        missing = [p for p in names if p not in here]
        if missing:
            raise TargetUnavailable(
                f"ONNX Runtime {self.version} here has no {missing[0]}, only {', '.join(here)}. "
                f"Use `device: cpu`, or install another build: {self.install}."
            )
        if not names:
            super().check_device(found)
        self.providers = [
            (p, {"device_id": index} if index and p.startswith(("CUDA", "Tensorrt")) else {})
            for p in names
        ]

    def load(self, file: Path, threads: int, batch: int | None) -> Session:
        """Open an ``.onnx`` file; see ``Target``."""
        free = {} if batch is None else dict.fromkeys(free_batch_names(file), batch)
        return OnnxRuntimeSession(file, self.providers, threads, free, makers)

    @classmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """By the operator's name; see ``Target``."""
        return kernel_class(node.op, _CLASSES, _MULTIPLYING)

    @classmethod
    def keeps_packed(cls, node: NodeTime) -> bool:
        """Its product of floats and weights in few bits; see ``Target``."""
        return node.op == "MatMulNBits"

    def shows_channels(self, node: NodeTime, channels: int, linear: bool) -> bool:
        """Looks through blocked layouts and those with channels last; see ``Target``."""
        shape = node.outputs[0][1]
        shown = {shape[-1 if linear else 1]}
        if not linear and self.classify(node) is KernelClass.INTEGER:
            # these may hold channels last; their scales and biases tell the count
            vectors = {size[0] for _, size in node.inputs if len(size) == 1}
            shown = vectors or {shape[1], shape[-1]}
        return any(-(-channels // block) * block in shown for block in _BLOCKS)

    def facts(self) -> dict[str, Any]:
        """The execution providers."""
        return {"providers": [name for name, _ in self.providers]}

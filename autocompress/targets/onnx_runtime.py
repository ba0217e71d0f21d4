"""ONNX Runtime on the CPU, and on CUDA or TensorRT where those providers are installed."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from autocompress.errors import InputError, TargetUnavailable
from autocompress.machine.device import Device
from autocompress.machine.ssh import SCHEME
from autocompress.targets.base import Availability, Session, TargetConfig
from autocompress.targets.onnx_files import OnnxTarget, free_batch_names, makers
from autocompress.targets.onnx_session import OnnxRuntimeSession, origin
from autocompress.targets.profile import KernelClass, NodeTime, Profile, kernel_class
from autocompress.targets.session import Arrays

_log = logging.getLogger(__name__)
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
        python: name or path of Python on a device that ``ssh`` reaches.
    """

    runtime: str = "onnxruntime"
    providers: tuple[str, ...] | None = None
    python: str = "python3"


_CPU = [("CPUExecutionProvider", dict[str, str]())]


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
        """The providers that are asked for, or those of the device, must be here.

        Of a device that ``ssh`` reaches nothing is known before ``reach``.
        """
        if self.config.device.startswith(SCHEME):
            if self.config.table is not None:
                raise InputError("Give `target.table` or a device that is reached, not both.")
            self.elsewhere, self.providers = device_at(self.config.device, self.config.python), _CPU
            return
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
        if self.elsewhere is not None:
            return DeviceSession(self.elsewhere, self.fields(), file, threads, free)
        return OnnxRuntimeSession(file, self.providers, threads, free, makers)

    def reach(self) -> None:
        """See that the device is there, and say what differs from the runtime here."""
        if self.elsewhere is None:
            return
        there, here = self.elsewhere.version, self.version
        missing = set(self.config.providers or ()) - set(self.elsewhere.providers)
        if missing:
            raise TargetUnavailable(
                f"ONNX Runtime {there} on {self.elsewhere.url} has no {min(missing)}, only "
                f"{', '.join(self.elsewhere.providers)}."
            )
        if there != here:
            _log.warning(
                "%s has ONNX Runtime %s, and quality is judged here in %s: the same version on "
                "both computes the same.",
                self.elsewhere.url,
                there,
                here,
            )

    def fields(self) -> dict[str, Any]:
        """See ``Target``."""
        asked = self.config.providers
        return super().fields() | ({} if asked is None else {"providers": list(asked)})

    def describe(self) -> dict[str, Any]:
        """See ``Target``; of another device its own version and machine."""
        told = super().describe()
        if self.elsewhere is None:
            return told
        return told | {
            "version": self.elsewhere.version,
            "providers": list(self.config.providers or [name for name, _ in _CPU]),
            "machine": self.machine(),
            "quality_version": self.version,
        }

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


class DeviceSession(OnnxRuntimeSession):
    """A file that runs here, for its quality, and is profiled on another device.

    Args:
        device: that one.
        fields: that it runs with there.
        file: the model.
        threads: here.
        free: name of a free axis to the size that it is opened for here.
    """

    def __init__(
        self,
        device: Device,
        fields: Mapping[str, Any],
        file: Path,
        threads: int,
        free: Mapping[str, int],
    ) -> None:
        super().__init__(file, _CPU, threads, free)
        self._device, self._fields = device, fields

    def profile(self, inputs: Arrays, runs: int = 20) -> Profile:
        """The profile of the device's runtime."""
        asked = {"runs": runs}
        found, _ = self._device.ask(
            "profile", self._fields, [self.file], asked, self.arrays(inputs)
        )
        known = makers(self.file)
        nodes = (
            NodeTime(
                origin(node["name"], known),
                node["op"],
                node["ms"],
                _tensors(node["inputs"]),
                _tensors(node["outputs"]),
            )
            for node in found["nodes"]
        )
        return Profile(tuple(nodes), found["total_ms"])


def _tensors(listed: Sequence[Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((kind, tuple(shape)) for kind, shape in listed)


@cache
def device_at(url: str, python: str) -> Device:
    """The device of an address; a process has one connection to it.

    Raises:
        InputError: that is no address, or no Python.
    """
    return Device(url, python, free_batch_names)

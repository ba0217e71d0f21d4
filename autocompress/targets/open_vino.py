"""OpenVINO, which opens the same ``.onnx`` files, on the CPU or an Intel GPU or NPU."""

from __future__ import annotations

import logging
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress.targets.base import (
    WARM_UP,
    Arrays,
    Availability,
    Session,
    TargetConfig,
    TensorSpec,
)
from autocompress.targets.onnx_files import OnnxTarget, file_sizes, makers
from autocompress.targets.profile import KernelClass, NodeTime, Profile, kernel_class

_log = logging.getLogger(__name__)
_ONE_AT_A_TIME = threading.Lock()
#: biases and scales are split off and merged again, which leaves marks in the names
_SPLIT = re.compile(r"(/WithoutBiases)?(/Dequantization\w+)?$")
#: kernels end in the type that they compute in
_INTEGER = re.compile("_[iu]8$", re.IGNORECASE)
_CLASSES = {
    "FakeQuantize": KernelClass.QUANTIZE,
    "Convert": KernelClass.LAYOUT,
    "Reorder": KernelClass.LAYOUT,
    "Transpose": KernelClass.LAYOUT,
}
_PROPERTIES: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
}
_MULTIPLYING = re.compile("conv|gemm|matmul|fullyconnected|lstm|gru|attention", re.IGNORECASE)


def _core() -> Any:
    """The one of this process, which stays.

    On processors with AMX each core brings a stack for signals of its own. Where several go in
    another order than they came, one that is freed stays in use, and the next signal, such as
    Ctrl-C, ends the process with a segmentation fault.
    """
    with _ONE_AT_A_TIME:  # or two threads that ask together make two, and one of them is freed
        return _made_core()


@cache
def _made_core() -> Any:
    import openvino

    return openvino.Core()


class OpenVinoConfig(TargetConfig):
    """Fields of ``target:`` for OpenVINO."""

    runtime: str = "openvino"


class OpenVinoTarget(OnnxTarget):
    """See ``OnnxTarget``.

    Float layers compute in 32 bits even where the processor has bfloat16, which OpenVINO would
    otherwise take by itself: the uncompressed model is the reference of every ratio.
    """

    name = "openvino"
    config_model = OpenVinoConfig
    install = "pip install 'autocompress[openvino]'"
    integer_kernels = True

    def __init__(self, config: TargetConfig) -> None:
        super().__init__(config)
        self._core = _core()
        self.device = config.device.replace(":", ".").upper()

    @classmethod
    def present(cls) -> Availability:
        """What OpenVINO offers here; build numbers say nothing to a reader."""
        import openvino

        devices = tuple(d.lower().replace(".", ":") for d in _core().available_devices)
        return Availability(cls.name, True, str(openvino.get_version()).partition("-")[0], devices)

    def load(self, file: Path, threads: int, batch: int | None) -> OpenVinoSession:
        """Open an ``.onnx`` file; see ``Target``."""
        properties = dict(_PROPERTIES)
        if self.device == "CPU":
            properties["INFERENCE_NUM_THREADS"] = threads
        return OpenVinoSession(self._core, file, self.device, properties, batch)

    @classmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """By the layer's type and the type of its arithmetic; see ``Target``."""
        return _class(node.op)

    def facts(self) -> dict[str, Any]:
        """What float layers compute in, and the threads where they are fewer than asked for.

        OpenVINO runs no more threads than this process may use cores. Other times belong to them,
        so that records and cached tables must tell.
        """
        asked = self.config.threads
        used = _threads(asked) if self.device == "CPU" and asked > 1 else asked
        return {"precision": "f32", **({"threads_used": used} if used != asked else {})}

    def reach(self) -> None:
        """Say where fewer threads run than were asked for."""
        used = self.facts().get("threads_used")
        if used is not None:
            _log.warning(
                "`target.threads` asks for %d, and OpenVINO runs %d: it takes no more than this "
                "process may use cores. All its times are those of %d.",
                self.config.threads,
                used,
                used,
            )


class OpenVinoSession(Session):
    """One opened ``.onnx`` file.

    Args:
        core: OpenVINO's.
        file: the model.
        device: in OpenVINO's spelling.
        properties: of the compilation.
        batch: as in ``Target.load``.
    """

    def __init__(
        self, core: Any, file: Path, device: str, properties: dict[str, Any], batch: int | None
    ) -> None:
        self.file = file
        self._core = core
        self._device = device
        self._properties = properties
        try:
            self._model: Any = core.read_model(str(file))
            if batch is not None:
                _fix_batch(self._model, batch)
            self._request: Any = self._compile(False)
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot open {file.name}: {_last_line(error)}") from None
        self.sizes = file_sizes(file)
        self.inputs = tuple(
            TensorSpec(
                port.any_name,
                tuple(d.get_length() if d.is_static else None for d in port.partial_shape),
                np.dtype(port.element_type.to_dtype()).name,
            )
            for port in self._model.inputs
        )

    def _compile(self, profiled: bool) -> Any:
        properties = {**self._properties, "PERF_COUNT": "YES" if profiled else "NO"}
        return self._core.compile_model(
            self._model, self._device, properties
        ).create_infer_request()

    @property
    def threads(self) -> int:
        """Threads that the compiled model really uses."""
        return int(self._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS"))

    def prepare(self, inputs: Arrays) -> Callable[[], Any]:
        """A call without arguments on inputs that the request already holds."""
        import openvino

        request = self._request
        for i, array in enumerate(self.arrays(inputs)):
            request.set_input_tensor(i, openvino.Tensor(array))
        return lambda: request.infer()

    def profile(self, inputs: Arrays, runs: int = 20) -> Profile:
        """OpenVINO's own counters, from a second compilation; it tells no shapes."""
        request, feed = self._compile(True), self.arrays(inputs)
        origin = makers(self.file)
        times: dict[str, list[float]] = defaultdict(list)
        kernels: dict[str, str] = {}
        totals = []
        for i in range(WARM_UP + runs):
            request.infer(feed)
            if i < WARM_UP:
                continue
            totals.append(request.latency)
            spent: dict[str, float] = defaultdict(float)
            for info in request.profiling_info:
                if info.status == info.Status.EXECUTED:
                    name = _SPLIT.sub("", info.node_name)
                    name, kernel = origin.get(name, name), _kernel(info)
                    spent[name] += info.real_time.total_seconds() * 1e3
                    # a layer whose bias is added apart goes by the kernel that multiplies
                    if name not in kernels or _class(kernel).multiplies:
                        kernels[name] = kernel
            for name, ms in spent.items():
                times[name].append(ms)
        nodes = tuple(NodeTime(n, kernels[n], float(np.median(t))) for n, t in times.items())
        return Profile(nodes, float(np.median(totals)))

    def close(self) -> None:
        """Free the model."""
        self._request = self._model = None


@cache
def _threads(asked: int) -> int:
    """Threads that OpenVINO takes where so many are asked for, by its own word."""
    import openvino
    from openvino import opset13

    x = opset13.parameter([1], np.float32)
    properties = {**_PROPERTIES, "INFERENCE_NUM_THREADS": asked}
    made = _core().compile_model(openvino.Model([opset13.relu(x)], [x]), "CPU", properties)
    return int(made.get_property("INFERENCE_NUM_THREADS"))


def _class(op: str) -> KernelClass:
    found = kernel_class(_INTEGER.sub("", op), _CLASSES, _MULTIPLYING)
    integer = found is KernelClass.FLOAT and _INTEGER.search(op)
    return KernelClass.INTEGER if integer else found


def _kernel(info: Any) -> str:
    """The layer's type, with the type of its arithmetic where that is 8-bit."""
    arithmetic = str(info.exec_type).rpartition("_")[2].lower()
    return f"{info.node_type}_{arithmetic}" if arithmetic in ("i8", "u8") else str(info.node_type)


def _fix_batch(model: Any, batch: int) -> None:
    shapes = {}
    for port in model.inputs:
        shape = port.partial_shape
        if len(shape) and shape[0].is_dynamic:
            shape[0] = batch
        shapes[port.any_name] = shape
    model.reshape(shapes)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

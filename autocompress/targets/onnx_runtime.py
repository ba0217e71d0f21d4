"""ONNX Runtime on the CPU, and on CUDA or TensorRT where those providers are installed."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError, TargetUnavailable
from autocompress.exporters.metadata import SIZES_KEY
from autocompress.machine.scratch import scratch_folder
from autocompress.targets.base import (
    WARM_UP,
    Array,
    Availability,
    Inputs,
    Session,
    TargetConfig,
    TensorSpec,
)
from autocompress.targets.onnx_files import OnnxTarget, free_batch_names, makers
from autocompress.targets.profile import KernelClass, NodeTime, Profile, kernel_class

#: where a name within ``tensor(...)`` is not numpy's
_DTYPES = {"float": "float32", "double": "float64"}
#: what it adds to the output's name when it calls a merged node after it
_RENAMED = re.compile("^InsertedPrecisionFreeCast_|_nchwc$")
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
    integer_kernels = True
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

    def load(self, file: Path, threads: int, batch: int | None) -> OnnxRuntimeSession:
        """Open an ``.onnx`` file; see ``Target``."""
        return OnnxRuntimeSession(file, self.providers, threads, batch)

    @classmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """By the operator's name; see ``Target``."""
        return kernel_class(node.op, _CLASSES, _MULTIPLYING)

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


class OnnxRuntimeSession(Session):
    """One opened ``.onnx`` file; sequential execution, all graph optimizations.

    Args:
        file: the model.
        providers: execution providers with their options.
        threads: of one operator.
        batch: as in ``Target.load``.
    """

    def __init__(
        self,
        file: Path,
        providers: Sequence[tuple[str, dict[str, str]]],
        threads: int,
        batch: int | None,
    ) -> None:
        self.file = file
        self._providers = list(providers)
        self._threads = threads
        self._free = free_batch_names(file) if batch is not None else ()
        self._batch = batch
        self._session: Any = self._make(None)
        self.inputs = tuple(
            TensorSpec(
                i.name,
                tuple(d if isinstance(d, int) else None for d in i.shape),
                _DTYPES.get(i.type[7:-1], i.type[7:-1]),
                tuple(d if isinstance(d, str) else None for d in i.shape),
            )
            for i in self._session.get_inputs()
        )
        said = self._session.get_modelmeta().custom_metadata_map.get(SIZES_KEY)
        self.sizes = json.loads(said) if said else {}

    def _make(self, profile_prefix: str | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for name in self._free:
            options.add_free_dimension_override_by_name(name, self._batch)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        try:
            return onnxruntime.InferenceSession(str(self.file), options, providers=self._providers)
        except Exception as error:  # the runtime's errors have no common base class
            raise InputError(
                f"ONNX Runtime cannot open {self.file.name}: {str(error).splitlines()[0]}"
            ) from None

    @property
    def threads(self) -> int:
        """Threads of one operator."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def prepare(self, inputs: Inputs) -> Callable[[], Any]:
        """A call without arguments; ``run`` copies to and from the device and waits."""
        feed, run = self._feed(inputs), self._session.run
        names = [o.name for o in self._session.get_outputs()]
        return lambda: run(names, feed)

    def _feed(self, inputs: Inputs) -> dict[str, Array]:
        return {s.name: a for s, a in zip(self.inputs, self.arrays(inputs), strict=True)}

    def profile(self, inputs: Inputs, runs: int = 20) -> Profile:
        """The runtime's own profile, from a second session with the profiler on."""
        feed = self._feed(inputs)
        with scratch_folder("profile") as folder:
            session = self._make(str(folder / "profile"))
            for _ in range(WARM_UP + runs):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            del session
        return _read_profile(events, WARM_UP, makers(self.file))

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _origin(name: str, makers: Mapping[str, str]) -> str:
    """The file's own name of a node that the runtime renamed."""
    tensor = _RENAMED.sub("", name)
    return makers.get(tensor, name) if tensor != name else name


def _read_profile(events: list[dict[str, Any]], warm_up: int, makers: Mapping[str, str]) -> Profile:
    """Median per node over the runs after the warm-up, from the profiler's trace events."""
    times: dict[str, list[float]] = defaultdict(list)
    first: dict[str, dict[str, Any]] = {}
    totals: list[float] = []
    for event in events:
        name = event.get("name", "")
        if name == "model_run":
            totals.append(event["dur"] / 1e3)
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        key = f"{event['args'].get('node_index')}:{name}"
        times[key].append(event["dur"] / 1e3)
        first.setdefault(key, event)
    nodes = []
    for key, event in first.items():
        args = event["args"]
        kept = times[key][warm_up:] or times[key]
        nodes.append(
            NodeTime(
                name=_origin(event["name"].removesuffix("_kernel_time"), makers),
                op=args.get("op_name", "?"),
                # the profiler counts whole microseconds: the mean of the faster half keeps more
                # of them than a median and still leaves interruptions out
                ms=float(np.mean(np.sort(kept)[: max(1, (len(kept) + 1) // 2)])),
                inputs=_shapes(args.get("input_type_shape", [])),
                outputs=_shapes(args.get("output_type_shape", [])),
            )
        )
    return Profile(tuple(nodes), float(np.median(totals[warm_up:] or totals or [np.nan])))


def _shapes(listed: list[dict[str, list[int]]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((kind, tuple(shape)) for one in listed for kind, shape in one.items())

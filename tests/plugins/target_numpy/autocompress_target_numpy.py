"""ONNX's reference evaluator as a target: numpy only, slow, and on every machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from autocompress.errors import InputError
from autocompress.targets import (
    Availability,
    KernelClass,
    NodeTime,
    Profile,
    Session,
    Target,
    TargetConfig,
    TensorSpec,
)

if TYPE_CHECKING:
    from autocompress.exporters.write import ExportedFile
    from autocompress.techniques.compressed import Compressed


class NumpyConfig(TargetConfig):
    """What a study's ``target:`` may say.

    Args:
        verbose: the evaluator prints so much of what it does.
    """

    runtime: str = "numpy"
    threads: Literal[1] = 1
    verbose: int = 0


class NumpyTarget(Target):
    """Opens the ``.onnx`` files that autocompress writes anyway, and the same as text."""

    name = "numpy"
    suffix = ".onnx"
    also_opens = also_writes = (".textproto",)
    config_model = NumpyConfig
    config: NumpyConfig
    install = "pip install autocompress-target-numpy"

    @classmethod
    def present(cls) -> Availability:
        """Version and devices; an ``ImportError`` would mean that it is not installed."""
        import onnx

        return Availability(cls.name, True, onnx.__version__, devices=("cpu",))

    def load(self, file: Path, threads: int, batch: int | None) -> Session:
        """Open a file; there is only one thread."""
        return NumpySession(file, batch, self.config.verbose)

    def export(self, compressed: Compressed, path: str | Path, example: Any) -> ExportedFile:
        """``.onnx`` is written already, and what this adds is made from it."""
        import onnx

        path = Path(path)
        if path.suffix == self.suffix:
            return super().export(compressed, path, example)
        with TemporaryDirectory() as folder:
            written = super().export(compressed, Path(folder) / "model.onnx", example)
            onnx.save(onnx.load(written.path), path)
        return replace(written, path=path, size_bytes=path.stat().st_size)

    @classmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """Integers are simulated here, so that no kernel is an integer one."""
        if node.op in ("Conv", "Gemm", "MatMul"):
            return KernelClass.FLOAT
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            return KernelClass.QUANTIZE
        return KernelClass.OTHER


class NumpySession(Session):
    """One opened file."""

    threads = 1

    def __init__(self, file: Path, batch: int | None, verbose: int) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self.file = file
        try:
            model = onnx.load(file)
        except Exception as error:  # protobuf's decode error is not exported
            raise InputError(f"{file} is not an ONNX file: {error}") from None
        for opset in model.opset_import:
            # the evaluator knows no earlier quantization; what files hold has not changed since
            opset.version = max(opset.version, 19)
        self._evaluator: Any = ReferenceEvaluator(model, verbose=verbose)
        self.inputs = tuple(_spec(value, batch) for value in model.graph.input)

    def run(self, inputs: Any) -> list[Any]:
        """One inference."""
        return self.prepare(inputs)()

    def prepare(self, inputs: Any) -> Callable[[], list[Any]]:
        """A call without arguments; ``arrays`` checks number, shapes and types."""
        feed = self._feed(inputs)
        return lambda: [np.array(found) for found in self._evaluator.run(None, feed)]

    def profile(self, inputs: Any, runs: int = 20) -> Profile:
        """Every node by itself, under its name in the file."""
        times: dict[int, list[float]] = {}
        shapes: dict[int, Any] = {}
        for _ in range(runs):
            known = {"": None, **self._evaluator.rt_inits_, **self._feed(inputs)}
            for i, node in enumerate(self._evaluator.rt_nodes_):
                read = [known[name] for name in node.input]
                begin = time.perf_counter()
                made = node.run(*read)
                times.setdefault(i, []).append((time.perf_counter() - begin) * 1e3)
                known |= dict(zip(node.output, made, strict=True))
                shapes[i] = tuple(_told(v) for v in read), tuple(_told(v) for v in made)
        nodes = tuple(
            NodeTime(node.onnx_node.name, node.op_type, float(np.median(times[i])), *shapes[i])
            for i, node in enumerate(self._evaluator.rt_nodes_)
        )
        return Profile(nodes, float(np.median(np.sum(list(times.values()), axis=0))))

    def close(self) -> None:
        """Free the model."""
        self._evaluator = None

    def _feed(self, inputs: Any) -> dict[str, Any]:
        names = [spec.name for spec in self.inputs]
        return dict(zip(names, self.arrays(inputs), strict=True))


def _spec(value: Any, batch: int | None) -> TensorSpec:
    """Name, shape and element type of an input; a free batch is settled to ``batch``."""
    import onnx

    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    if shape and shape[0] is None:
        shape[0] = batch
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return TensorSpec(value.name, tuple(shape), dtype.name)


def _told(value: Any) -> tuple[str, tuple[int, ...]]:
    """Element type and shape, as profiles have them."""
    array = np.asarray(value)
    return array.dtype.name.replace("float32", "float"), array.shape

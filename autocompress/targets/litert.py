"""LiteRT (formerly TensorFlow Lite) with XNNPACK, the runtime of phones, on this machine's CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.errors import InputError
from autocompress.exporters.silence import silent
from autocompress.policy.writing import replacing
from autocompress.targets.base import (
    Arrays,
    Availability,
    Session,
    Target,
    TargetConfig,
    TensorSpec,
    unsupported,
)
from autocompress.targets.profile import KernelClass, NodeTime, Profile, kernel_class

if TYPE_CHECKING:
    from autocompress.exporters.litert_file import Graph, Operator
    from autocompress.exporters.write import ExportedFile
    from autocompress.techniques.compressed import Compressed

#: what must be here beside the runtime, to write its files
_WRITING = ("litert_torch", "ai_edge_quantizer")
_CLASSES = {
    "QUANTIZE": KernelClass.QUANTIZE,
    "DEQUANTIZE": KernelClass.QUANTIZE,
    "CAST": KernelClass.LAYOUT,
    "PAD": KernelClass.LAYOUT,
    "PADV2": KernelClass.LAYOUT,
    "TRANSPOSE": KernelClass.LAYOUT,
}
_MULTIPLYING = re.compile("CONV|FULLY_CONNECTED|MATMUL|LSTM")
#: arithmetic that the file's types show: integers alone, or floats rounded when they are read
_INTEGER = re.compile("_(int8|dynamic)$")
_WHOLE = "INVOKE"


class LiteRtConfig(TargetConfig):
    """Fields of ``target:`` for LiteRT."""

    runtime: str = "litert"


class LiteRtTarget(Target):
    """Opens ``.tflite`` files, which are written for the batch of the config.

    Files with 16-bit weights compute in 32 bits on processors without such arithmetic.
    """

    name = "litert"
    suffix = ".tflite"
    config_model = LiteRtConfig
    install = "pip install 'autocompress[litert]'"
    integer_kernels = True
    free_batch = False

    @classmethod
    def present(cls) -> Availability:
        """Whether the runtime is here, and what writes its files."""
        import ai_edge_litert.interpreter  # noqa: F401 (a broken library shows here)

        missing = [name for name in _WRITING if find_spec(name) is None]
        if missing:
            raise ImportError(f"No module named {missing[0]!r}")
        details = {"converter": version("litert-torch"), "quantizer": version("ai-edge-quantizer")}
        return Availability(cls.name, True, version("ai-edge-litert"), ("cpu",), details=details)

    def load(self, file: Path, threads: int, batch: int | None) -> LiteRtSession:
        """Open a ``.tflite`` file; see ``Target``."""
        return LiteRtSession(file, threads, batch)

    def export(self, compressed: Compressed, path: str | Path, example: Any) -> ExportedFile:
        """Write a ``.tflite`` file; see ``Target``."""
        from autocompress.exporters.litert_quantize import litert_bytes
        from autocompress.exporters.write import ExportedFile

        path = Path(path)
        if path.suffix != self.suffix:
            return super().export(compressed, path, example)
        reason = unsupported(type(self), compressed.policy.layers.values())
        if reason:
            raise InputError(f"This policy cannot be exported: {reason}.")
        with replacing(path) as partial:
            partial.write_bytes(litert_bytes(compressed, example, self.config.batch))
        changed = tuple(n for n, p in compressed.precisions.items() if p.weight_bits < 32)
        return ExportedFile(path, path.stat().st_size, changed)

    @classmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """By the operator and the types that it works on; see ``Target``."""
        found = kernel_class(_INTEGER.sub("", node.op), _CLASSES, _MULTIPLYING)
        integer = found is KernelClass.FLOAT and _INTEGER.search(node.op)
        return KernelClass.INTEGER if integer else found

    def shows_channels(self, node: NodeTime, channels: int, linear: bool) -> bool:
        """Channels come last; see ``Target``."""
        return node.outputs[0][1][-1] == channels

    def facts(self) -> dict[str, Any]:
        """What runs most operators."""
        return {"delegate": "XNNPACK"}


class LiteRtSession(Session):
    """One opened ``.tflite`` file.

    Args:
        file: the model.
        threads: of one operator.
        batch: as in ``Target.load``; a file of another batch is resized, if it can be.

    Raises:
        InputError: LiteRT cannot open it, or not for this batch.
    """

    def __init__(self, file: Path, threads: int, batch: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.file = file
        self._threads = threads
        self._held: Any = None
        try:
            with silent():
                self._runner: Any = Interpreter(model_path=str(file), num_threads=threads)
                self._runner.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"LiteRT cannot open {file.name}: {error}") from None
        self._places = [d["index"] for d in self._runner.get_input_details()]
        self._answers = [d["index"] for d in self._runner.get_output_details()]
        own = {int(d["shape"][0]) for d in self._runner.get_input_details() if len(d["shape"])}
        if batch is not None and own and own != {batch}:
            self._resize(batch)
        self.inputs = tuple(
            TensorSpec(d["name"], tuple(map(int, d["shape"])), np.dtype(d["dtype"]).name)
            for d in self._runner.get_input_details()
        )

    def _resize(self, batch: int) -> None:
        try:
            for details in self._runner.get_input_details():
                size = [batch, *map(int, details["shape"][1:])]
                self._runner.resize_tensor_input(details["index"], size)
            with silent():
                self._runner.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.file.name} was written for another batch than {batch}, and its operators "
                f"hold that size: {error} Export it again with `target: {{batch: {batch}}}`."
            ) from None

    @property
    def threads(self) -> int:
        """As asked for: the interpreter does not tell."""
        return self._threads

    def prepare(self, inputs: Arrays) -> Callable[[], Any]:
        """A call without arguments; inputs are copied in when others were run before."""
        feed = self.arrays(inputs)
        runner, answers = self._runner, self._answers

        def once() -> list[Any]:
            if self._held is not feed:
                for place, array in zip(self._places, feed, strict=True):
                    runner.set_tensor(place, array)
                self._held = feed
            runner.invoke()
            return [runner.get_tensor(place) for place in answers]

        return once

    def profile(self, inputs: Arrays, runs: int = 20) -> Profile:
        """The file's operators, and the time of all together: the wheel's runtime tells no more."""
        from autocompress.exporters.litert_file import Graph

        median = self.whole_ms(inputs, runs)
        graph = Graph.read(self.file.read_bytes())
        nodes = [_node(graph, each) for each in graph.operators]
        return Profile((*nodes, NodeTime("graph/whole", _WHOLE, median)), median)

    def close(self) -> None:
        """Free the model."""
        self._runner = self._held = None


def _node(graph: Graph, each: Operator) -> NodeTime:
    """An operator, named after its output, with the types that it reads and writes."""
    inputs = tuple(graph.kind(n) for n in each.inputs)
    outputs = tuple(graph.kind(n) for n in each.outputs)
    op = each.op
    if _MULTIPLYING.search(op) and len(inputs) > 1:
        # a transposed convolution reads the size of its output first
        read = inputs[1:3] if op == "TRANSPOSE_CONV" else inputs[:2]
        small = [kind.startswith(("int8", "int4")) for kind, _ in read]
        if all(small):
            op = f"{op}_int8"
        elif any(small):
            op = f"{op}_dynamic"
    return NodeTime(each.name, op, float("nan"), inputs, outputs)

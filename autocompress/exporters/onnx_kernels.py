"""ONNX files of single layers: to time each by the runtime's profiler, and to try one's range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.exporters.kernel_names import kernel_name
from autocompress.model.kernels import Kernel

_OPSET = 17
_IR_VERSION = 8
#: values of the block that weights repeat: as many bytes as a zip file looks back
_BLOCK = 4093


def write_kernels(kernels: Sequence[Kernel], path: str | Path, batch: int = 1) -> Path:
    """Write an ONNX file in which every kernel stands by itself.

    Kernels of equal input shape and type share one input. The node of kernel ``i`` and its output
    carry ``k00012``-like names, which survive the runtime's fusions.

    Args:
        kernels: at most 99,999.
        path: where to.
        batch: samples; fixed in the file.
    """
    import onnx
    from onnx import helper

    graph = _Graph(batch)
    for i, kernel in enumerate(kernels):
        graph.add(i, kernel)
    proto = helper.make_graph(
        graph.nodes, "kernels", list(graph.inputs.values()), graph.outputs, graph.constants
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


PRODUCTS = 64
"""Products that are added up in the file of ``write_largest_products``, and the exact sum."""

_LARGEST = f"""
<ir_version: 10, opset_import: ["": 18]>
largest (float[1, {PRODUCTS}] x) => (float[1, {PRODUCTS}] y) {{
    xq = QuantizeLinear(x, scale, zero)
    xf = DequantizeLinear(xq, scale, zero)
    wf = DequantizeLinear(weight, weight_scale, weight_zero)
    yf = MatMul(xf, wf)
    yq = QuantizeLinear(yf, out_scale, zero)
    y = DequantizeLinear(yq, out_scale, zero)
}}
"""


def write_largest_products(path: Path) -> Path:
    """Write a linear layer in 8 bits whose every weight is 127 (as a float, 1).

    On inputs of ones, each of which is then 255, every output is ``PRODUCTS``.
    """
    import onnx
    from onnx import numpy_helper

    values = {
        "weight": np.full((PRODUCTS, PRODUCTS), 127, np.int8),
        "weight_scale": np.float32(1 / 127),
        "weight_zero": np.int8(0),
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "out_scale": np.float32(PRODUCTS / 255),
    }
    model = onnx.parser.parse_model(_LARGEST)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    model.graph.initializer.extend(tensors)
    onnx.save(model, path)
    return path


class _Graph:
    """Collects nodes, inputs and weights."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.nodes: list[Any] = []
        self.inputs: dict[str, Any] = {}
        self.outputs: list[Any] = []
        self.constants: list[Any] = []
        # times do not depend on the values; repeated ones make packed files small
        self._block = np.random.default_rng(0).standard_normal(_BLOCK).astype(np.float32) * 0.1
        self._shared: dict[str, str] = {}

    def add(self, i: int, kernel: Kernel) -> None:
        """One kernel."""
        from onnx import TensorProto

        name = kernel_name(i)
        weight = np.resize(self._block, self._weight_shape(kernel))
        bias = np.zeros(kernel.out_channels, np.float32)
        if kernel.precision == "int8":
            x = self._quantized_input(kernel)
            out = self._node(kernel, f"{name}_f", [x, *self._quantized(name, weight)], name)
            self._emit("QuantizeLinear", [out, *self._scale("act")], [name], f"{name}_q")
            self._output(name, TensorProto.UINT8)
        elif kernel.precision == "int8_dynamic":
            self._dynamic(name, kernel, weight)
        else:
            kind = np.float16 if kernel.precision == "fp16" else np.float32
            x = self._input(
                kernel, TensorProto.FLOAT16 if kind == np.float16 else TensorProto.FLOAT
            )
            # in a network the layer before has just written the input; integer kernels have a
            # Transpose or DynamicQuantizeLinear before them that does the same
            self._emit("Abs", [x], [f"{name}_x"], f"input_{i}")
            inputs = [f"{name}_x", self._const(f"{name}_w", weight.astype(kind))]
            inputs.append(self._const(f"{name}_b", bias.astype(kind)))
            self._node(kernel, name, inputs, name)
            self._output(name, TensorProto.FLOAT16 if kind == np.float16 else TensorProto.FLOAT)

    def _weight_shape(self, kernel: Kernel) -> tuple[int, ...]:
        if kernel.kind == "linear":
            return (kernel.out_channels, kernel.in_channels)
        return (kernel.out_channels, kernel.in_channels // kernel.groups, *kernel.kernel_size)

    def _dynamic(self, name: str, kernel: Kernel, weight: Any) -> None:
        from onnx import TensorProto

        x = self._input(kernel, TensorProto.FLOAT)
        quantized = [f"{name}_x", f"{name}_s", f"{name}_z"]
        self._emit("DynamicQuantizeLinear", [x], quantized, f"{name}_dq")
        ints = np.clip(weight * 300, -127, 127).astype(np.int8)
        zero = self._const("zero_i8", np.array(0, np.int8))
        if kernel.kind == "linear":
            w = self._const(f"{name}_w", np.ascontiguousarray(ints.T))
            self._emit("MatMulInteger", [quantized[0], w, quantized[2], zero], [f"{name}_i"], name)
        else:
            w = self._const(f"{name}_w", ints)
            self._emit(
                "ConvInteger",
                [quantized[0], w, quantized[2], zero],
                [f"{name}_i"],
                name,
                **self._attributes(kernel),
            )
        self._emit("Cast", [f"{name}_i"], [f"{name}_c"], f"{name}_cast", to=TensorProto.FLOAT)
        self._emit("Mul", [f"{name}_c", f"{name}_s"], [name], f"{name}_mul")
        self._output(name, TensorProto.FLOAT)

    def _node(self, kernel: Kernel, out: str, inputs: list[str], name: str) -> str:
        if kernel.kind == "linear":
            self._emit("Gemm", inputs, [out], name, transB=1)
        else:
            self._emit("Conv", inputs, [out], name, **self._attributes(kernel))
        return out

    @staticmethod
    def _attributes(kernel: Kernel) -> dict[str, Any]:
        # "same" padding, split as frameworks do
        pads = [k // 2 for k in kernel.kernel_size]
        ends = [
            max(0, k - s - p) if s > 1 else k - 1 - p
            for k, s, p in zip(kernel.kernel_size, kernel.stride, pads, strict=True)
        ]
        return {
            "kernel_shape": list(kernel.kernel_size),
            "strides": list(kernel.stride),
            "pads": pads + ends,
            "group": kernel.groups,
        }

    def _input(self, kernel: Kernel, kind: int) -> str:
        from onnx import helper

        shape = list(kernel.input_shape)
        # rows of a linear layer and the batch are one dimension, as Gemm wants it
        shape = (
            [self.batch * shape[0], shape[1]] if kernel.kind == "linear" else [self.batch, *shape]
        )
        name = f"in_{kind}_" + "x".join(map(str, shape))
        if name not in self.inputs:
            self.inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        return name

    def _quantized_input(self, kernel: Kernel) -> str:
        from onnx import TensorProto

        raw = self._input(kernel, TensorProto.UINT8)
        # each kernel has its own dequantization, as the fusion wants it
        name = f"{raw}_d{len(self.nodes)}"
        self._emit("DequantizeLinear", [raw, *self._scale("act")], [name], f"{name}_node")
        return name

    def _quantized(self, name: str, weight: Any) -> list[str]:
        channels = len(weight)
        ints = np.clip(weight * 300, -127, 127).astype(np.int8)
        w = [
            self._const(f"{name}_w", ints),
            self._const(f"{name}_ws", np.full(channels, 1 / 300, np.float32)),
            self._const(f"{name}_wz", np.zeros(channels, np.int8)),
        ]
        b = [
            self._const(f"{name}_b", np.zeros(channels, np.int32)),
            self._const(f"{name}_bs", np.full(channels, 0.02 / 300, np.float32)),
            self._const(f"{name}_bz", np.zeros(channels, np.int32)),
        ]
        self._emit("DequantizeLinear", w, [f"{name}_wd"], f"{name}_wdn", axis=0)
        self._emit("DequantizeLinear", b, [f"{name}_bd"], f"{name}_bdn", axis=0)
        return [f"{name}_wd", f"{name}_bd"]

    def _scale(self, name: str) -> list[str]:
        return [
            self._const(f"{name}_scale", np.array(0.02, np.float32)),
            self._const(f"{name}_zero", np.array(128, np.uint8)),
        ]

    def _const(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        if name not in self._shared:
            self._shared[name] = name
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _emit(self, op: str, inputs: list[str], outputs: list[str], name: str, **kw: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **kw))

    def _output(self, name: str, kind: int) -> None:
        from onnx import helper

        self.outputs.append(helper.make_tensor_value_info(name, kind, None))

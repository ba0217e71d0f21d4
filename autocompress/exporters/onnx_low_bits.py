"""Weights in fewer bits beside float arithmetic: small in the file, floats when they are used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import ExportError

_RECURRENT = ("LSTM", "GRU")
_SET = 21
"""The operators' version that knows two values a byte."""


def channel_axis(node: Any) -> int:
    """Axis of the output channels in a node's weight; of a table, of its rows."""
    if node.op_type in ("MatMul", "ConvTranspose"):
        return 1
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i == 1 for a in node.attribute)
        return 0 if transposed else 1
    return 0


def weight_place(node: Any) -> int:
    """Which input of a node its weight is."""
    return 0 if node.op_type == "Gather" else 1


def store_low_bits(model: Any, name: str, bits: int) -> None:
    """Store the weights of one node as integers, a scale for each output channel, in place.

    A DequantizeLinear makes floats of them. Of a table in 8 bits only the rows that are picked
    become floats: to turn all of it at every run would take longer than the network. A recurrent
    layer has two weights; its directions share the scales.

    Args:
        model: ``onnx.ModelProto``.
        name: of a convolution, linear or recurrent layer, or a lookup, with constant weights.
        bits: 2 to 8; below 8 two values share a byte.

    Raises:
        ExportError: a weight is computed at run time.
    """
    node = next(n for n in model.graph.node if n.name == name)
    if node.op_type not in _RECURRENT:
        _store(model, node, weight_place(node), channel_axis(node), bits)
        return
    for place in (1, 2):
        _store(model, node, place, 1, bits)


def knowing_low_bits(model: Any) -> None:
    """Raise a model's operators to the set that knows two values a byte, in place.

    Some of them are written otherwise there (a Fourier transform's axis, the modes of a sampled
    grid): to raise the number alone would change what they mean.
    """
    from onnxscript import version_converter

    if all(o.version >= _SET for o in model.opset_import if o.domain in ("", "ai.onnx")):
        return
    version_converter.convert_version(model, _SET)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = _SET
    model.ir_version = max(model.ir_version, 10)


def _store(model: Any, node: Any, place: int, axis: int, bits: int) -> None:
    """The same for one input of a node, by the axis of its output channels."""
    from onnx import helper, numpy_helper

    position = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
    weights = {i.name: i for i in model.graph.initializer}
    tensor = weights.get(node.input[place])
    if tensor is None:
        raise ExportError(
            f"Integers in place of weights need a weight that stands in the file; that of "
            f"{node.name!r} is computed at each run. Leave the layer at 32 bits, or give it "
            "`activation_bits: 8` as well."
        )
    grid, scale = _grid(numpy_helper.to_array(tensor), bits, axis)
    stored = _int8(grid, tensor.name) if bits == 8 else _int4(grid, tensor.name)
    if bits == 8 and node.op_type == "Gather":
        factor = numpy_helper.from_array(scale[:, None], f"{tensor.name}_scale")
        _pick_integers(model, position, stored.name, factor.name)
    else:
        factor = numpy_helper.from_array(scale, f"{tensor.name}_scale")
        output = f"{tensor.name}_dequantized"
        own = f"{node.name}_weight" + (f"_{place}" if node.op_type in _RECURRENT else "")
        dequantize = helper.make_node(
            "DequantizeLinear", [stored.name, factor.name], [output], own, axis=axis
        )
        node.input[place] = output
        model.graph.node.insert(position, dequantize)
    model.graph.initializer.extend([stored, factor])
    if not any(tensor.name in n.input for n in model.graph.node):
        model.graph.initializer.remove(tensor)


def _grid(value: NDArray[Any], bits: int, axis: int) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Levels of a weight, and the scale of each of its channels."""
    limit = 2 ** (bits - 1) - 1
    other = tuple(i for i in range(value.ndim) if i != axis)
    scale = np.maximum(np.abs(value).max(axis=other), 1e-12).astype(np.float32) / limit
    shape = [-1 if i == axis else 1 for i in range(value.ndim)]
    levels = np.clip(np.round(value / scale.reshape(shape)), -limit, limit)
    return levels.astype(np.int8), scale


def _int8(grid: NDArray[np.int8], name: str) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(grid, f"{name}_int8")


def _int4(grid: NDArray[np.int8], name: str) -> Any:
    """Two values a byte."""
    from onnx import TensorProto, helper

    flat = grid.reshape(-1)
    padded = np.concatenate([flat, np.zeros(len(flat) % 2, np.int8)])
    packed = (padded[0::2] & 0xF) | ((padded[1::2] & 0xF) << 4)
    return helper.make_tensor(
        f"{name}_int4",
        TensorProto.INT4,
        list(grid.shape),
        packed.astype(np.uint8).tobytes(),
        raw=True,
    )


def _pick_integers(model: Any, position: int, table: str, scales: str) -> None:
    """Let a lookup pick integers and their scales, and multiply them."""
    from onnx import TensorProto, helper

    node = model.graph.node[position]
    name, places, output = node.name, node.input[1], node.output[0]
    picked, floats, factors = (f"{output}_picked_{part}" for part in ("int8", "float", "scale"))
    node.input[0], node.output[0] = table, picked
    added = [
        helper.make_node("Cast", [picked], [floats], f"{name}_float", to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales, places], [factors], f"{name}_scale"),
        helper.make_node("Mul", [floats, factors], [output], f"{name}_scaled"),
    ]
    for offset, new in enumerate(added, 1):
        model.graph.node.insert(position + offset, new)

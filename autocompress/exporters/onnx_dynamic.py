"""Layers with ranges at run time, in the file: ONNX Runtime's dynamic quantizer and its mends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.techniques.quantize import weight_limit


def quantize_dynamic(
    model: Any,
    nodes: tuple[str, ...],
    scales: Mapping[str, NDArray[np.float32]],
    *,
    reduced: bool = False,
) -> Any:
    """Give nodes integer kernels whose input ranges are taken at run time.

    Args:
        model: float where these nodes are concerned; used up.
        nodes: names of ``Conv``, ``MatMul``, ``Gemm`` and ``LSTM`` nodes with constant weights.
        scales: of some nodes, at which their weights are to be stored, by output channel.
        reduced: see ``weight_limit``.
    """
    import onnx
    from onnxruntime.quantization import QuantizationMode, QuantType
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

    # inferred now: nothing is known past a kept Gemm, and the quantizer leaves that in float
    wrapped = ONNXModel(onnx.shape_inference.infer_shapes(model))
    gemms = {n.name for n in model.graph.node if n.op_type == "Gemm" and n.name in nodes}
    renamed = _gemms_to_matmul(wrapped, gemms)
    wanted = [*(n for n in nodes if n not in gemms), *renamed]
    grids = _grids(wrapped.model, wanted, scales, weight_limit(8, reduced))
    quantizer = ONNXQuantizer(
        wrapped.model,
        per_channel=True,
        reduce_range=reduced,
        mode=QuantizationMode.IntegerOps,
        static=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=None,
        nodes_to_quantize=wanted,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul", "LSTM", "Conv"],
        extra_options={
            "MatMulConstBOnly": True,
            "DefaultTensorType": onnx.TensorProto.FLOAT,
        },
    )
    quantizer.quantize_model()
    _put_grids(quantizer.model.model, grids)
    for node in quantizer.model.model.graph.node:
        if node.op_type == "KeptGemm":
            node.op_type = "Gemm"
    _name_apart(quantizer.model.model)
    return quantizer.model.model


def _gemms_to_matmul(wrapped: Any, gemms: set[str]) -> list[str]:
    """Turn these ``Gemm`` nodes into ``MatMul`` and ``Add``; the names of the new products.

    The others are ``KeptGemm`` until the quantizer is through: it turns every ``Gemm`` once more.
    """
    before = {n.name for n in wrapped.model.graph.node}
    for node in wrapped.model.graph.node:  # the helper takes every Gemm, and renames it
        if node.op_type == "Gemm" and node.name not in gemms:
            node.op_type = "KeptGemm"
    wrapped.replace_gemm_with_matmul()
    return [
        n.name for n in wrapped.model.graph.node if n.op_type == "MatMul" and n.name not in before
    ]


def _name_apart(model: Any) -> None:
    """Static layers may read the same tensor, and would choose the same names for its integers."""
    renamed = {
        name: f"{name}_dynamic"
        for node in model.graph.node
        if node.op_type == "DynamicQuantizeLinear"
        for name in node.output
    }
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            node.name += "_dynamic"
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]


def _grids(
    model: Any, nodes: Sequence[str], scales: Mapping[str, NDArray[np.float32]], limit: int
) -> dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]]:
    """Integers and scales by output channel, where the quantizer would choose others.

    It gives a convolution one scale for all channels. The integer sums are multiplied by the scale
    afterwards, which may as well differ by channel.

    Args:
        model: float, as the quantizer will get it.
        nodes: that it will quantize.
        scales: see ``quantize_dynamic``.
        limit: largest level.

    Returns:
        By the name of the weight.
    """
    from onnx import numpy_helper

    held = {i.name: i for i in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        given = scales.get(node.name.removesuffix("_MatMul"))
        chosen = node.op_type == "Conv" or (node.op_type == "MatMul" and given is not None)
        if not chosen or node.name not in nodes or node.input[1] not in held:
            continue
        value = numpy_helper.to_array(held[node.input[1]])
        axis = 0 if node.op_type == "Conv" else 1
        other = tuple(i for i in range(value.ndim) if i != axis)
        if given is None:
            given = np.maximum(np.abs(value).max(axis=other), 1e-12).astype(np.float32) / limit
        grid = np.round(value / np.expand_dims(given, other)).astype(np.int8)
        found[node.input[1]] = grid, given
    return found


def _put_grids(
    model: Any, grids: Mapping[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
) -> None:
    """Exchange the integers and scales of weights; the model is changed."""
    from onnx import numpy_helper

    held = {i.name: i for i in model.graph.initializer}
    for name, (grid, scale) in grids.items():
        shape = (-1, *[1] * (grid.ndim - 2))
        for part, found in (("quantized", grid), ("scale", scale.reshape(shape))):
            kept = held[f"{name}_{part}"]
            kept.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(found), kept.name))

"""Layers with ranges at run time, in the file: ONNX Runtime's dynamic quantizer and its mends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from autocompress.techniques.quantize import weight_limit


def quantize_dynamic(model: Any, nodes: tuple[str, ...], *, reduced: bool = False) -> Any:
    """Give nodes integer kernels whose input ranges are taken at run time.

    Args:
        model: float where these nodes are concerned; used up.
        nodes: names of ``Conv``, ``MatMul``, ``Gemm`` and ``LSTM`` nodes with constant weights.
        reduced: see ``weight_limit``.
    """
    import onnx
    from onnxruntime.quantization import QuantizationMode, QuantType
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

    floats = {i.name: i for i in model.graph.initializer}
    floats = {
        n.input[1]: floats[n.input[1]]
        for n in model.graph.node
        if n.op_type == "Conv" and n.name in nodes and n.input[1] in floats
    }
    # inferred now: nothing is known past a kept Gemm, and the quantizer leaves that in float
    wrapped = ONNXModel(onnx.shape_inference.infer_shapes(model))
    gemms = {n.name for n in model.graph.node if n.op_type == "Gemm" and n.name in nodes}
    renamed = _gemms_to_matmul(wrapped, gemms)
    quantizer = ONNXQuantizer(
        wrapped.model,
        per_channel=True,
        reduce_range=reduced,
        mode=QuantizationMode.IntegerOps,
        static=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=None,
        nodes_to_quantize=[*(n for n in nodes if n not in gemms), *renamed],
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul", "LSTM", "Conv"],
        extra_options={
            "MatMulConstBOnly": True,
            "DefaultTensorType": onnx.TensorProto.FLOAT,
        },
    )
    quantizer.quantize_model()
    _scale_channels(quantizer.model.model, floats, weight_limit(8, reduced))
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


def _scale_channels(model: Any, floats: Mapping[str, Any], limit: int) -> None:
    """Give the weights of dynamic convolutions one scale per output channel, not one for all.

    Their integer sums are multiplied by the scale afterwards, which may as well differ by channel.

    Args:
        model: changed in place.
        floats: name of a convolution's weight to the tensor.
        limit: largest level.
    """
    from onnx import numpy_helper

    held = {i.name: i for i in model.graph.initializer}
    for name, tensor in floats.items():
        value = numpy_helper.to_array(tensor)
        peak = np.abs(value).max(axis=tuple(range(1, value.ndim)), keepdims=True)
        scale = np.maximum(peak, 1e-12).astype(np.float32) / limit
        grid = np.round(value / scale).astype(np.int8)
        for part, found in (("quantized", grid), ("scale", scale[:, 0])):
            kept = held[f"{name}_{part}"]
            kept.CopyFrom(numpy_helper.from_array(found, kept.name))

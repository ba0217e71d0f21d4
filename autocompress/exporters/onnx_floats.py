"""Keep ONNX Runtime from rounding what a policy leaves in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autocompress.exporters.onnx_reads import reads


def keep_floats(model: Any, static: set[str]) -> None:
    """Let layers that stay float read integers through a DequantizeLinear of one scale per channel.

    Where a convolution or Gemm reads a tensor of a single scale, ONNX Runtime rounds its float
    weights to 8 bits, one scale for all of them, and runs it as an integer kernel that nobody asked
    for. The scales here are all the same, so that the values are, too.

    Args:
        model: ``onnx.ModelProto`` with Quantize/Dequantize pairs; changed in place.
        static: names of the nodes that are to be integer.
    """
    held = {i.name: i for i in model.graph.initializer}
    made_by = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    apart: dict[str, Any] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.name not in static:
            pair, weight = made_by.get(node.input[0]), node.input[1]
            weight = made_by[weight].input[0] if weight in made_by else weight
            channels = _input_channels(node, held[weight].dims) if weight in held else 0
            if pair is not None and channels > 1:  # one scale is one scale, whatever its shape
                if pair.name not in apart:
                    apart[pair.name] = _by_channel(model.graph, pair, held, channels)
                    nodes.append(apart[pair.name])
                node.input[0] = apart[pair.name].output[0]
        nodes.append(node)
    read = {name for node in nodes for name in reads(node)} | {o.name for o in model.graph.output}
    left = [n for n in nodes if n.op_type != "DequantizeLinear" or n.output[0] in read]
    del model.graph.node[:]
    model.graph.node.extend(left)


def _by_channel(graph: Any, pair: Any, held: Mapping[str, Any], channels: int) -> Any:
    """A DequantizeLinear like ``pair`` that repeats its scale and zero point for every channel."""
    from onnx import helper, numpy_helper

    vectors = []
    for name in pair.input[1:]:
        value = np.repeat(numpy_helper.to_array(held[name]).reshape(1), channels)
        vectors.append(f"{pair.name}_{name}_channels")
        graph.initializer.append(numpy_helper.from_array(value, vectors[-1]))
    return helper.make_node(
        "DequantizeLinear",
        [pair.input[0], *vectors],
        [f"{pair.output[0]}_channels"],
        name=f"{pair.name}_channels",
        axis=1,
    )


def _input_channels(node: Any, weight: Sequence[int]) -> int:
    """Length of the second axis of what a convolution or Gemm reads."""
    options = {a.name: a.i for a in node.attribute}
    if node.op_type == "Gemm":
        return int(weight[1 if options.get("transB") else 0])
    if node.op_type == "ConvTranspose":
        return int(weight[0])
    return int(weight[1]) * options.get("group", 1)

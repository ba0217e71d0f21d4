"""Weights in 4 bits that the runtime's own kernel multiplies packed, in blocks along the inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import ExportError

DOMAIN = "com.microsoft"
STORED_BITS = 4
"""Of every weight in the file. For 2 and 8 bits, which the operator knows as well, the runtime has
no kernel that leaves inputs float: it makes floats of the whole matrix at every run."""

_BLOCKS = (16, 32, 64, 128)
"""Inputs that make a block where all blocks of an output have the same scale, which the operator
cannot say otherwise."""

_FLOATS = 1
"""Accuracy level of the kernel: inputs stay float. At 0 the runtime may choose, at 4 it rounds them
to 8 bits."""


def block_of_equals(inputs: int) -> int:
    """The blocks in which a row with one scale takes the fewest bytes, large ones first."""
    return min(
        reversed(_BLOCKS), key=lambda size: -(-inputs // size) * (size * STORED_BITS // 8 + 4)
    )


def stored_matrix(model: Any, name: str) -> NDArray[Any] | None:
    """The matrix ``(outputs, inputs)`` of a product that can stay packed; ``None`` of another node.

    Args:
        model: ``onnx.ModelProto``.
        name: of a node.
    """
    from onnx import helper, numpy_helper

    node = next(n for n in model.graph.node if n.name == name)
    held = {i.name: i for i in model.graph.initializer}
    weight = held.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
    if weight is None or len(weight.dims) != 2 or options.get("transA") or not plain:
        return None
    matrix = numpy_helper.to_array(weight)
    return matrix if options.get("transB") else matrix.T


def store_blocks(model: Any, name: str, bits: int, block: int) -> None:
    """Let one node multiply packed integers, in place: ``MatMulNBits`` instead of its product.

    Args:
        model: ``onnx.ModelProto``.
        name: of a ``MatMul`` or ``Gemm`` whose second input is a constant matrix.
        bits: 2 to 4.
        block: so many inputs share a scale for each output, a power of two from 16 on; 0 for one
            scale for each output.

    Raises:
        ExportError: the weight is computed at run time, or the operator is another one.
    """
    from onnx import helper, numpy_helper

    rows = stored_matrix(model, name)
    if rows is None:
        raise ExportError(
            f"A scale per block needs a product with a matrix that stands in the file; "
            f"{name!r} is none. Give the layer `weight_block: 0`."
        )
    graph = model.graph
    position = next(i for i, n in enumerate(graph.node) if n.name == name)
    node = graph.node[position]
    held = {i.name: i for i in graph.initializer}
    weight = held[node.input[1]]
    packed, scales = pack(rows, bits, block)
    parts = [
        numpy_helper.from_array(packed, f"{weight.name}_packed"),
        numpy_helper.from_array(scales, f"{weight.name}_scales"),
    ]
    bias, output, taken = _bias(graph, node, len(rows), held)
    made = helper.make_node(
        "MatMulNBits",
        [node.input[0], parts[0].name, parts[1].name, *(["", "", bias] if bias else [])],
        [output],
        name,
        domain=DOMAIN,
        K=rows.shape[1],
        N=len(rows),
        bits=STORED_BITS,
        block_size=block or block_of_equals(rows.shape[1]),
        accuracy_level=_FLOATS,
    )
    graph.node[position].CopyFrom(made)
    if taken is not None:
        graph.node.remove(taken)
    graph.initializer.extend(parts)
    if not any(weight.name in n.input for n in graph.node):
        graph.initializer.remove(weight)
    if not any(opset.domain == DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def pack(
    rows: NDArray[Any], bits: int, block: int, width: int = STORED_BITS
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Weights as ``MatMulNBits`` holds them.

    Args:
        rows: ``(outputs, inputs)``.
        bits: of the grid, which is symmetric; a level is stored with half the range added to it.
        block: so many weights along a row share a scale, 0 for all; what a row lacks of its last
            block is filled with zeros.
        width: bits that each level takes, 2, 4 or 8.

    Returns:
        ``(outputs, blocks, bytes)``, the first weight in the lowest bits of a byte, and the scales
        ``(outputs, blocks)``.
    """
    limit, size = 2 ** (bits - 1) - 1, block or block_of_equals(rows.shape[1])
    filled = np.pad(rows.astype(np.float32), ((0, 0), (0, -rows.shape[1] % size)))
    blocks = filled.reshape(len(rows), -1, size)
    largest = np.abs(blocks).max(2)
    if not block:
        largest = np.repeat(largest.max(1, keepdims=True), blocks.shape[1], 1)
    scales = np.maximum(largest, np.float32(1e-12)) / np.float32(limit)
    levels = np.clip(np.round(blocks / scales[..., None]), -limit, limit)
    codes = (levels + 2 ** (width - 1)).astype(np.uint8)
    packed = np.zeros((*scales.shape, size * width // 8), np.uint8)
    for place in range(8 // width):
        packed |= codes[..., place :: 8 // width] << np.uint8(width * place)
    return packed, scales


def _bias(graph: Any, node: Any, outputs: int, held: Any) -> tuple[str, str, Any]:
    """The kernel's bias, its output, and the addition that goes because of it.

    Without a bias the name is empty and the addition ``None``.
    """
    if len(node.input) > 2 and node.input[2]:
        return node.input[2], node.output[0], None
    output = node.output[0]
    readers = [n for n in graph.node if output in n.input]
    if len(readers) == 1 and readers[0].op_type == "Add" and output not in _given(graph):
        (other,) = [i for i in readers[0].input if i != output] or [""]
        if other in held and list(held[other].dims) == [outputs]:
            return other, readers[0].output[0], readers[0]
    return "", output, None


def _given(graph: Any) -> set[str]:
    return {value.name for value in graph.output}

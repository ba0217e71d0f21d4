"""Zeros around images: in the convolution that reads them, or on integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from autocompress.exporters.onnx_reads import read_in


def fold_padding(model: Any) -> None:
    """Let convolutions and average poolings pad by themselves what a ``Pad`` gives them, in place.

    Only zeros around the image axes, so that the result is the same. Frameworks pad apart where
    the two sides differ. The runtime would do this for float convolutions itself, but not where a
    ``Pad`` stands between integers, and it has no integer kernel for one.

    Args:
        model: ``onnx.ModelProto``, float.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    pads = {}
    for node in graph.node:
        if node.op_type == "Pad" and len(node.input) > 1 and node.input[1] in constants:
            widths = numpy_helper.to_array(constants[node.input[1]]).tolist()
            if len(node.input) < 4 and _zeros_around_images(node, widths, constants):
                pads[node.output[0]] = node.input[0], widths
    for node in graph.node:
        if node.input and node.input[0] in pads:
            source, widths = pads[node.input[0]]
            rank = len(widths) // 2
            if _takes(node, [*widths[2:rank], *widths[rank + 2 :]]):
                node.input[0] = source
    read = set(read_in(graph))
    for node in [n for n in graph.node if n.output and n.output[0] in pads]:
        if node.output[0] not in read:
            graph.node.remove(node)


def _zeros_around_images(node: Any, widths: list[int], constants: dict[str, Any]) -> bool:
    from onnx import numpy_helper

    rank = len(widths) // 2
    modes = [a.s for a in node.attribute if a.name == "mode"]
    fill = node.input[2] if len(node.input) > 2 else ""
    if modes not in ([], [b"constant"]) or rank < 3 or min(widths) < 0:
        return False
    if fill and (fill not in constants or np.any(numpy_helper.to_array(constants[fill]) != 0)):
        return False
    return not any((*widths[:2], *widths[rank : rank + 2]))


def _takes(node: Any, widths: list[int]) -> bool:
    """Add zeros to a node's own; whether it now computes the same without the ``Pad``."""
    from onnx import helper

    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if options.get("auto_pad", b"NOTSET") != b"NOTSET":
        return False
    own = options.get("pads", [0] * len(widths))
    total = [a + b for a, b in zip(own, widths, strict=True)]
    pool = node.op_type == "AveragePool"
    if pool:
        # its own zeros must count for the mean as those of the Pad do
        counted = options.get("count_include_pad", 0) or not any(own)
        size = options.get("kernel_shape", [])
        narrow = all(w < k for w, k in zip(total, [*size, *size], strict=True))
        if not counted or not narrow or options.get("ceil_mode", 0):
            return False
    elif node.op_type != "Conv":
        return False
    changed = {"pads": total, **({"count_include_pad": 1} if pool else {})}
    kept = [a for a in node.attribute if a.name not in changed]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in changed.items())])
    return True

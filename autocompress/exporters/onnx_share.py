"""Weights that several nodes of a file read are stored once."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.exporters.names import rename_tensors

_SMALLEST = 1024
"""Bytes; smaller tensors are not worth a look."""


def share_weights(model: Any) -> None:
    """Keep one of equal tensors, and of a matrix and its transpose, in place.

    Exporters write a weight again for every layer that holds it, turned around where a layer
    multiplies from the other side; runtimes turn it back when they load the file.

    Args:
        model: ``onnx.ModelProto``, finished.
    """
    from onnx import helper, numpy_helper

    known: dict[str, str] = {}
    renamed: dict[str, str] = {}
    turned = []
    outputs = {o.name for o in model.graph.output}
    for tensor in list(model.graph.initializer):
        if len(tensor.raw_data) < _SMALLEST or tensor.name in outputs:
            continue
        value = numpy_helper.to_array(tensor)
        first = known.setdefault(_digest(value, tensor.data_type), tensor.name)
        if first != tensor.name:
            renamed[tensor.name] = first
            model.graph.initializer.remove(tensor)
            continue
        other = known.get(_digest(value.T, tensor.data_type)) if value.ndim == 2 else None
        if other is not None and other != tensor.name:
            name = f"{tensor.name}_turned"
            turned.append(
                helper.make_node("Transpose", [other], [tensor.name], name=name, perm=[1, 0])
            )
            model.graph.initializer.remove(tensor)
    rename_tensors(model.graph, renamed)
    for node in reversed(turned):
        model.graph.node.insert(0, node)


def _digest(value: NDArray[Any], kind: int) -> str:
    content = hashlib.sha256(np.ascontiguousarray(value).tobytes())
    return f"{kind}:{value.shape}:{content.hexdigest()}"

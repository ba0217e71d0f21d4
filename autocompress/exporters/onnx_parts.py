"""An exported file cut into parts where one tensor alone flows on, with heads at the cuts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from autocompress.cascade.heads import LinearHead
from autocompress.exporters.names import layer_of
from autocompress.exporters.onnx_reads import reads

_WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv")
_FLOATS = (TensorProto.FLOAT,)
_BYTES = (TensorProto.UINT8, TensorProto.INT8)
MOST_FEATURES = 1024
"""Numbers that a head reads; the finest grid that stays within is taken."""
FINEST = 4
"""Places of the grid along each axis that features are pooled to."""


@dataclass(frozen=True)
class Cut:
    """A tensor that everything after it is computed from.

    Args:
        tensor: its name in the file.
        module: that computes it, for people.
        share: of the file's multiply-adds that are done by then.
        features: numbers of one input that a head reads there.
    """

    tensor: str
    module: str
    share: float
    features: int


class Parts:
    """Cuts a file.

    Args:
        model: an ``onnx.ModelProto`` with one output; it is not changed.
    """

    def __init__(self, model: Any) -> None:
        self._model = onnx.shape_inference.infer_shapes(model)
        graph = self._model.graph
        self._makers = {name: node for node in graph.node for name in node.output}
        self._constants = {i.name: i for i in graph.initializer}
        values = (*graph.value_info, *graph.input, *graph.output)
        self._types = {value.name: value.type.tensor_type for value in values}
        self._extractor = Extractor(self._model)

    def cuts(self) -> list[Cut]:
        """Where a head may answer, in the order of the graph; none where there is no such place.

        Between two layers with weights one tensor is named: the last of those that hold bytes,
        where there are such, so that integer kernels stay what they are on both sides; else the
        last.
        """
        macs = [self._macs(node) for node in self._nodes()]
        total, found = sum(macs), dict[int, Cut]()
        for place, tensor in self._single():
            weighted = sum(m > 0 for m in macs[: place + 1])
            features = self._features(tensor)
            if not 0 < weighted < sum(m > 0 for m in macs) or not features:
                continue
            if weighted in found and self._bytes(found[weighted].tensor) > self._bytes(tensor):
                continue
            share = sum(macs[: place + 1]) / total
            found[weighted] = Cut(tensor, self._module(tensor), share, features)
        return list(found.values())

    def part(self, start: str | None, end: str | None, head: LinearHead | None = None) -> Any:
        """The computation between two cuts, as a model of its own.

        Args:
            start: tensor that it takes; ``None``: the file's inputs.
            end: tensor at which it ends with a head, and which it hands on as its last output;
                ``None``: the file's output.
            head: at ``end``.
        """
        graph = self._model.graph
        given = [value.name for value in graph.input] if start is None else [start]
        wanted = [graph.output[0].name] if end is None else [end]
        found = self._extractor.extract_model(given, wanted)
        del found.graph.value_info[:]  # inputs and outputs stand there a second time
        if end is not None:
            assert head is not None
            handed = found.graph.output.pop()
            self._add_head(found.graph, end, head)
            found.graph.output.append(graph.output[0])
            found.graph.output.append(handed)
        for entry in self._model.metadata_props:
            found.metadata_props.add(key=entry.key, value=entry.value)
        onnx.checker.check_model(found)
        return found

    def probes(self, tensors: Iterable[str]) -> Any:
        """The file with one more output for each cut: what a head would read, ``(N, features)``."""
        found = onnx.ModelProto()
        found.CopyFrom(self._model)
        for tensor in tensors:
            name = self._pooled(found.graph, tensor)
            found.graph.output.append(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None])
            )
        return found

    def _nodes(self) -> list[Any]:
        """Nodes that depend on an input."""
        fixed, found = set(self._constants), []
        for node in self._model.graph.node:
            if all(name in fixed for name in reads(node)):
                fixed.update(node.output)
            else:
                found.append(node)
        self._fixed = fixed
        return found

    def _single(self) -> list[tuple[int, str]]:
        """Places after which one tensor alone is read later, and that tensor."""
        nodes, last = self._nodes(), dict[str, int]()
        for place, node in enumerate(nodes):
            last.update({n: place for n in reads(node) if n not in self._fixed})
        last.update({value.name: len(nodes) for value in self._model.graph.output})
        live = {value.name for value in self._model.graph.input} & set(last)
        found = []
        for place, node in enumerate(nodes):
            live = {n for n in (*live, *node.output) if last.get(n, -1) > place}
            if len(live) == 1:
                found.append((place, next(iter(live))))
        return found

    def _bytes(self, tensor: str) -> bool:
        return self._types[tensor].elem_type in _BYTES

    def _sizes(self, tensor: str) -> list[int] | None:
        """Sizes of the axes but the batch; ``None`` where they are not fixed."""
        kind = self._types.get(tensor)
        if kind is None or not kind.shape.dim or kind.shape.dim[0].HasField("dim_value"):
            return None
        sizes = [axis.dim_value for axis in kind.shape.dim[1:]]
        return sizes if sizes and all(sizes) else None

    def _features(self, tensor: str) -> int:
        """Numbers that a head reads of one input; 0 where there can be none."""
        kind, sizes = self._types.get(tensor), self._sizes(tensor)
        maker = self._makers.get(tensor)
        if kind is None or maker is None or kind.elem_type not in (*_FLOATS, *_BYTES):
            return 0
        if kind.elem_type in _BYTES and maker.op_type != "QuantizeLinear":
            return 0
        if sizes is None:  # of sequences the last axis alone
            axes = list(kind.shape.dim[1:])
            return axes[-1].dim_value if len(axes) == 2 and not axes[0].dim_value else 0
        if len(sizes) == 3:
            return sizes[0] * math.prod(self._grid(sizes))
        return sizes[-1] if len(sizes) in (1, 2) else 0

    @staticmethod
    def _grid(sizes: list[int]) -> tuple[int, int]:
        channels, *room = sizes
        for places in range(FINEST, 0, -1):
            grid = min(places, room[0]), min(places, room[1])
            if channels * math.prod(grid) <= MOST_FEATURES:
                return grid
        return 1, 1

    def _pooled(self, graph: Any, tensor: str) -> str:
        """Adds the nodes that give ``(N, features)`` of a tensor; gives its name."""
        maker, name = self._makers[tensor], tensor
        if self._bytes(tensor):
            name = f"{tensor}/float"
            scale = list(maker.input[1:])
            graph.node.append(helper.make_node("DequantizeLinear", [tensor, *scale], [name], name))
        sizes = self._sizes(tensor)
        flat = f"{tensor}/features"
        if sizes is not None and len(sizes) == 3:
            grid, pooled = self._grid(sizes), f"{tensor}/pooled"
            # windows of one size that cover all: the last begins where it ends at the border
            steps = [size // places for size, places in zip(sizes[1:], grid, strict=True)]
            kernel = [
                size - step * (places - 1)
                for size, step, places in zip(sizes[1:], steps, grid, strict=True)
            ]
            graph.node.append(
                helper.make_node(
                    "AveragePool", [name], [pooled], pooled, kernel_shape=kernel, strides=steps
                )
            )
            graph.node.append(helper.make_node("Flatten", [pooled], [flat], flat))
        elif len(self._types[tensor].shape.dim) == 3:  # the mean over a sequence
            axes = f"{tensor}/axes"
            graph.initializer.append(numpy_helper.from_array(_whole([1]), axes))
            graph.node.append(
                helper.make_node("ReduceMean", [name, axes], [flat], flat, keepdims=0)
            )
        else:
            graph.node.append(helper.make_node("Identity", [name], [flat], flat))
        return flat

    def _add_head(self, graph: Any, tensor: str, head: LinearHead) -> None:
        output = self._model.graph.output[0]
        flat = self._pooled(graph, tensor)
        names = [f"{tensor}/weight", f"{tensor}/bias"]
        for name, value in zip(names, (head.weight, head.bias), strict=True):
            graph.initializer.append(numpy_helper.from_array(value.astype("float32"), name))
        ranked = len(output.type.tensor_type.shape.dim) == 1
        answer = f"{tensor}/answer" if ranked else output.name
        graph.node.append(helper.make_node("Gemm", [flat, *names], [answer], f"{tensor}/head"))
        if ranked:  # one logit of each input, without an axis of its own
            axes = f"{tensor}/one"
            graph.initializer.append(numpy_helper.from_array(_whole([1]), axes))
            graph.node.append(helper.make_node("Squeeze", [answer, axes], [output.name], answer))

    def _module(self, tensor: str) -> str:
        layer = layer_of(self._makers[tensor].name)
        if layer is None and self._makers[tensor].input:
            maker = self._makers.get(self._makers[tensor].input[0])
            layer = layer_of(maker.name) if maker is not None else None
        return layer[0] if layer is not None else tensor

    def _macs(self, node: Any) -> int:
        """Multiply-adds of one input, as far as sizes are known; at least 1 of a weighted node."""
        if node.op_type not in _WEIGHTED:
            return 0
        sides = [self._weight(name) for name in node.input]
        weight = next((shape for shape in sides if shape and len(shape) > 1), None)
        if weight is None:
            return 0  # two tensors of one input, as in attention
        sizes = self._sizes(node.output[0]) or [1]
        if "Conv" in node.op_type:
            return max(1, math.prod(sizes) * math.prod(weight[1:]))
        return max(1, math.prod(sizes[:-1]) * math.prod(weight))

    def _weight(self, name: str) -> list[int] | None:
        """Shape of a constant, also behind nodes that make its floats."""
        while name not in self._constants:
            maker = self._makers.get(name)
            if maker is None or name not in self._fixed or not maker.input:
                return None
            name = maker.input[0]
        return list(self._constants[name].dims)


def drop_features(path: Path) -> None:
    """Let a part that ends at a head hand nothing on: nobody takes its features."""
    found = onnx.load(path)
    found.graph.output.pop()
    onnx.save(found, path)


def _whole(values: list[int]) -> Any:
    import numpy as np

    return np.array(values, np.int64)

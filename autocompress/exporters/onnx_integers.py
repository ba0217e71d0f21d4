"""Rewrite what lies between integer layers so that the runtime's integer kernels take it.

Before ONNX Runtime's quantizer: hard swish becomes an addition and a product, linear layers on more
than two axes become ``Gemm``, whose kernel adds the bias to its integer sums. After it: what only
floats read is not rounded, and paddings move integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.exporters.onnx_glue import CLIPPING, Wires
from autocompress.exporters.onnx_reads import read_in
from autocompress.techniques.compressed import Range

_STEP = "_levels"
"""Ends the names of nodes that turn the levels of one tensor into those of another."""


@dataclass
class Integers:
    """A float graph on its way to the quantizer, with what is to be integer in it.

    Args:
        model: ``onnx.ModelProto``; changed in place.
        static: names of integer nodes.
        ranges: of the tensors that they read and write.
    """

    model: Any
    static: set[str]
    ranges: dict[str, Range]
    _in_rows: set[str] = field(default_factory=set)

    @property
    def clipped(self) -> set[str]:
        """Tensors that only their ranges clip, once they are integers."""
        nodes = self.model.graph.node
        return {n.output[0] for n in nodes if n.name in self.static and n.op_type in CLIPPING}

    def prepare(self) -> None:
        """Exchange the operators that have no integer kernel for some that have."""
        for node in list(self.model.graph.node):
            if node.name in self.static and node.op_type in ("HardSigmoid", "HardSwish"):
                self._hard_curve(node)
        wires = Wires.of(self.model.graph)
        shapes = _shapes(self.model)
        for node in wires.nodes:
            if node.op_type == "MatMul" and node.name in self.static:
                self._linear(node, wires, shapes)
        self._drop_unread()
        wires = Wires.of(self.model.graph)
        for node in wires.nodes:
            if node.op_type == "Gemm" and node.name in self.static:
                self._stand_apart(node, wires)

    def _drop_unread(self) -> None:
        """Take out what gave tensors their axes back for linear layers alone."""
        graph = self.model.graph
        read = set(read_in(graph))
        for node in reversed(list(graph.node)):
            if not any(o in read for o in node.output):
                graph.node.remove(node)
                self.static.discard(node.name)

    def _stand_apart(self, node: Any, wires: Wires) -> None:
        """Let a linear layer that floats read write floats, to one reader that changes nothing.

        The runtime merges activations, sums and transpositions into a ``Gemm`` that writes floats,
        which makes a float kernel of it, and one that others read beside a QuantizeLinear is none
        of its integer kernels.
        """
        from onnx import helper

        y = node.output[0]
        readers = wires.readers.get(y, [])
        whole = wires.only_read_by(self.static, y)
        if whole or not readers or (len(readers) == 1 and readers[0].op_type == "Reshape"):
            return
        node.output[0] = f"{y}_floats"
        self.ranges[node.output[0]] = self.ranges[y]
        shape = self._constant(f"{y}_as_it_is", np.array([-1, _width(node, wires)]))
        made = helper.make_node("Reshape", [node.output[0], shape], [y], f"{node.name}_floats")
        self.model.graph.node.insert(list(self.model.graph.node).index(node) + 1, made)

    def _hard_curve(self, node: Any) -> None:
        """``clip(a x + b, 0, 1)``, which saturated levels clip, and for hard swish times ``x``."""
        from onnx import helper

        options = {a.name: a.f for a in node.attribute}
        swish = node.op_type == "HardSwish"
        slope = 1 / 6 if swish else options.get("alpha", 0.2)
        shift = 3.0 if swish else options.get("beta", 0.5) / slope
        x, y = node.input[0], node.output[0]
        factor = f"{y}_factor" if swish else y
        high = 1.0 if swish else min(1.0, self.ranges[y].high)
        self.ranges[factor] = Range(0.0, high)
        self.ranges[f"{y}_sum"] = Range(0.0, high / slope)
        added = [
            helper.make_node(
                "Add", [x, self._constant(f"{y}_shift", shift)], [f"{y}_sum"], f"{node.name}_sum"
            ),
            # the same levels at another scale: gone once there are levels
            helper.make_node(
                "Mul",
                [f"{y}_sum", self._constant(f"{y}_slope", slope)],
                [factor],
                f"{node.name}{_STEP}",
            ),
        ]
        self.static.add(f"{node.name}_sum")
        if swish:
            added.append(helper.make_node("Mul", [x, factor], [y], node.name))
        self._put(node, added)

    def _linear(self, node: Any, wires: Wires, shapes: Mapping[str, list[int | None]]) -> None:
        """A product with a constant matrix, and the sum behind it, as one ``Gemm`` on rows."""
        from onnx import helper

        matrix = wires.held.get(node.input[1])
        if matrix is None or len(matrix.dims) != 2:
            return
        x, y, (inside, outside) = node.input[0], node.output[0], matrix.dims
        inputs = [f"{x}_rows", node.input[1]]
        bias = _bias(node, wires, outside)
        if bias is not None:
            adding, vector = bias
            inputs.append(vector)
            self.ranges.setdefault(adding.output[0], self.ranges[y])
            y = adding.output[0]
            self.static.discard(adding.name)
            self.model.graph.node.remove(adding)
        shape, before = self._shape(x, y, outside, shapes.get(x))
        added = [*self._rows_of(x, inside, node), *before]
        added.append(helper.make_node("Gemm", inputs, [f"{y}_rows"], node.name))
        self.ranges[f"{y}_rows"] = self.ranges[y]
        clip = _only_reader(y, wires)
        if clip is not None and clip.name in self.static and clip.op_type in CLIPPING:
            # beside the product, where it vanishes into its range
            self.model.graph.node.remove(clip)
            clip.input[0], y = f"{y}_rows", clip.output[0]
            clip.output[0] = f"{y}_rows"
            self.ranges[f"{y}_rows"] = self.ranges[y]
            added.append(clip)
        columns = f"{node.name}_columns"
        added.append(helper.make_node("Reshape", [f"{y}_rows", shape], [y], columns))
        if wires.only_read_by(self.static, y):
            self.static.add(columns)
        self._in_rows.add(y)  # the next linear layer may read the matrix as it is
        self._put(node, added)

    def _rows_of(self, x: str, inside: int, node: Any) -> list[Any]:
        """The node that makes a matrix of a tensor, whose rows are its vectors; once for all."""
        from onnx import helper

        if x in self._in_rows:
            return []
        self._in_rows.add(x)
        self.ranges[f"{x}_rows"] = self.ranges[x]
        shape = self._constant(f"{x}_rows_shape", np.array([-1, inside]))
        self.static.add(f"{node.name}_rows")
        return [helper.make_node("Reshape", [x, shape], [f"{x}_rows"], f"{node.name}_rows")]

    def _shape(
        self, x: str, y: str, outside: int, known: list[int | None] | None
    ) -> tuple[str, list[Any]]:
        """The shape of a linear layer's output, and what computes it where it is not known."""
        from onnx import helper

        if known is not None and known[:-1].count(None) < 2:
            sizes = [-1 if size is None else size for size in known[:-1]]
            return self._constant(f"{y}_shape", np.array([*sizes, outside])), []
        whole, front, shape = (f"{y}_{part}" for part in ("sizes", "sizes_kept", "shape"))
        first, last = (
            self._constant("from_first", np.array([0])),
            self._constant("to_last", np.array([-1])),
        )
        width = self._constant(f"{y}_width", np.array([outside]))
        return shape, [
            helper.make_node("Shape", [x], [whole], f"{whole}_node"),
            helper.make_node("Slice", [whole, first, last], [front], f"{front}_node"),
            helper.make_node("Concat", [front, width], [shape], f"{shape}_node", axis=0),
        ]

    def _constant(self, name: str, value: float | NDArray[Any]) -> str:
        """Hold a constant, once."""
        from onnx import numpy_helper

        if not any(i.name == name for i in self.model.graph.initializer):
            array = np.float32(value) if isinstance(value, float) else value.astype(np.int64)
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _put(self, node: Any, added: list[Any]) -> None:
        """Exchange a node for others."""
        place = list(self.model.graph.node).index(node)
        self.model.graph.node.remove(node)
        for offset, new in enumerate(added):
            self.model.graph.node.insert(place + offset, new)


def _width(node: Any, wires: Wires) -> int:
    """Outputs of a ``Gemm`` with a constant matrix; its rows may be none, as of an expert's."""
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return int(wires.held[node.input[1]].dims[0 if turned else 1])


def _only_reader(name: str, wires: Wires) -> Any:
    readers = wires.readers.get(name, [])
    return readers[0] if len(readers) == 1 else None


def _bias(node: Any, wires: Wires, outside: int) -> tuple[Any, str] | None:
    """The addition of a constant vector that alone reads a product, and the vector."""
    adding = _only_reader(node.output[0], wires)
    if adding is None or adding.op_type != "Add":
        return None
    for name in adding.input:
        if name in wires.held and list(wires.held[name].dims) == [outside]:
            return adding, name
    return None


def _shapes(model: Any) -> dict[str, list[int | None]]:
    """Sizes of the tensors whose number of axes can be inferred; ``None`` is a free one."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for info in (*graph.value_info, *graph.input, *graph.output):
        kind = info.type.tensor_type
        if kind.HasField("shape"):
            found[info.name] = [
                d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
            ]
    return found


def clean_up(model: Any, work: Integers) -> None:
    """Take out what the quantizer put in for nothing, in place.

    Args:
        model: ``onnx.ModelProto`` with Quantize/Dequantize pairs.
        work: what it was made from.
    """
    _keep_levels(model.graph)
    _read_floats(model.graph, work.static)
    _write_floats(model.graph, work.static, work.clipped)
    _pad_integers(model.graph)


def _keep_levels(graph: Any) -> None:
    """Leave out the steps between levels of two scales: the same levels are read at the other."""
    wires = Wires.of(graph)
    for node in wires.nodes:
        if not node.name.endswith(_STEP):
            continue
        pair, quantize = wires.makers[node.input[0]], _only_reader(node.output[0], wires)
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        for reader in wires.readers[quantize.output[0]]:
            reader.input[0] = pair.input[0]
        for gone in (pair, node, quantize):
            graph.node.remove(gone)


def _read_floats(graph: Any, static: set[str]) -> None:
    """Let floats read what floats made, not what integers read of it."""
    wires = Wires.of(graph)
    for pair in wires.nodes:
        quantize = wires.makers.get(pair.input[0]) if pair.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        maker = wires.makers.get(quantize.input[0])
        if maker is not None and maker.name in static:
            continue
        for reader in wires.readers.get(pair.output[0], ()):
            if reader.name not in static:
                reader.input[:] = [
                    quantize.input[0] if i == pair.output[0] else i for i in reader.input
                ]


def _write_floats(graph: Any, static: set[str], clipped: set[str]) -> None:
    """Let kernels of linear layers write floats where no integer kernel reads them."""
    wires = Wires.of(graph)
    for node in wires.nodes:
        quantize = _only_reader(node.output[0], wires)
        if node.op_type != "Gemm" or node.name not in static or node.output[0] in clipped:
            continue
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        pair = _only_reader(quantize.output[0], wires)
        if pair is None:
            continue
        output = pair.output[0]
        if any(r.name in static for r in wires.readers.get(output, [])):
            continue
        node.output[0] = output
        graph.node.remove(quantize)
        graph.node.remove(pair)


def _pad_integers(graph: Any) -> None:
    """Let paddings move integers; the runtime would make floats of them and integers again."""
    wires = Wires.of(graph)
    for node in [n for n in wires.nodes if n.op_type == "Pad"]:
        pair = wires.makers.get(node.input[0])
        readers = wires.readers.get(node.output[0], [])
        if pair is None or pair.op_type != "DequantizeLinear" or len(readers) != 1:
            continue
        (quantize,) = readers
        if quantize.op_type != "QuantizeLinear" or not _alike(pair, quantize, wires):
            continue
        filled = not any(a.name == "mode" and a.s != b"constant" for a in node.attribute)
        fill = [pair.input[2]] if filled else []
        node.input[:] = [pair.input[0], node.input[1], *fill, *([] if fill else [""])]
        node.output[0] = quantize.output[0]
        graph.node.remove(quantize)
        if len(wires.readers[pair.output[0]]) == 1:
            graph.node.remove(pair)


def _alike(one: Any, other: Any, wires: Wires) -> bool:
    """Whether two conversions have the same scale and zero."""
    pairs = zip(one.input[1:], other.input[1:], strict=True)
    return all(a == b or np.array_equal(wires.value(a), wires.value(b)) for a, b in pairs)

"""Which operators between integer layers run on integers, and which tensors share one scale.

The choice follows what ONNX Runtime's kernels cost: data movement, additions, products, poolings,
sigmoid and hard swish are cheaper on integers than with conversions around them. Softmax, norms,
GELU, products of two activations, and tables of 256 entries (its ``Gather``) are not; they stay in
float.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autocompress.exporters.onnx_reads import reads
from autocompress.techniques.compressed import Range

_MOVING = frozenset(
    {
        "AveragePool",
        "DepthToSpace",
        "Flatten",
        "Gather",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""They pick or average values of their first input, so that its scale serves the result."""
CLIPPING = frozenset({"Clip", "Relu"})
"""They vanish into the range of what the layer before writes."""
_FLOATS_TOO = frozenset({"Gemm", "MatMul"})
"""Layers whose kernels write floats as readily as integers."""
_POOLING = frozenset({"GlobalAveragePool", "ReduceMean"})
_COMPUTING = frozenset({"Add", "Concat", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Sigmoid"})
"""Integers only where integers read them: else they would round and gain nothing."""
_WIDEST = 2.0
"""An input of a concatenation takes the common scale where that costs it one bit at the most."""


@dataclass(frozen=True)
class Wires:
    """Who makes and who reads the tensors of a graph.

    Args:
        nodes: in order.
        held: constants by name.
        makers: tensor to the node that computes it.
        readers: tensor to the nodes that read it.
        answers: tensors that the graph gives.
    """

    nodes: list[Any]
    held: dict[str, Any]
    makers: dict[str, Any]
    readers: dict[str, list[Any]]
    answers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, graph: Any) -> Wires:
        """Of an ``onnx.GraphProto``."""
        held = {i.name: i for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                held.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in dict.fromkeys(reads(node)):
                readers.setdefault(name, []).append(node)
        nodes = list(graph.node)
        answers = frozenset(o.name for o in graph.output)
        return cls(nodes, held, {o: n for n in nodes for o in n.output}, readers, answers)

    def only_read_by(self, names: Collection[str], *tensors: str) -> bool:
        """Whether nodes of these names, and nobody else, read some tensors."""
        read = [reader for tensor in tensors for reader in self.readers.get(tensor, ())]
        return (
            bool(read) and self.answers.isdisjoint(tensors) and all(r.name in names for r in read)
        )

    def rounded(self, node: Any, names: Collection[str]) -> str:
        """The tensor in which a layer's output is rounded in any case; empty where it need not be.

        Behind a clip that vanishes it is what the clip gives.
        """
        if node.name not in names or node.op_type in _FLOATS_TOO:
            return ""
        output: str = node.output[0]
        readers = self.readers.get(output, [])
        while len(readers) == 1 and readers[0].op_type in CLIPPING and readers[0].name in names:
            output = readers[0].output[0]
            readers = self.readers.get(output, [])
        return output

    def value(self, name: str) -> Any:
        """A constant as an array, or ``None``."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.held[name]) if name in self.held else None

    def data(self, node: Any) -> list[str]:
        """The activations that a node reads; shapes and indices are none."""
        fed = node.input[:1] if node.op_type in _MOVING else node.input
        return [i for i in fed if i and i not in self.held]


def with_glue(graph: Any, layers: set[str], known: Mapping[str, Range] | None = None) -> list[str]:
    """Names of integer nodes: layers, and the operators between them that join them.

    Linear layers can write floats, and do unless integers alone read them. What reads them in float
    then reads what it does in the simulation, where layers round their own inputs and nothing else.

    Args:
        graph: ``onnx.GraphProto``, float.
        layers: names of the nodes that multiply integers.
        known: ranges, where they are known already; what has none stays in float.
    """
    wires = Wires.of(graph)
    names, free = _reached(wires, layers, known)
    for node in reversed(wires.nodes):
        if node.name not in names or node.name in layers:
            continue
        if all(o in free for o in node.output):
            needless = not wires.only_read_by(names, *node.output)
        else:  # what vanishes, or moves levels, costs nothing
            read = any(r.name in names for o in node.output for r in wires.readers.get(o, ()))
            needless = not read and node.op_type in _COMPUTING
        if needless:
            names.discard(node.name)
    return [n.name for n in wires.nodes if n.name in names]


def _reached(
    wires: Wires, layers: set[str], known: Mapping[str, Range] | None
) -> tuple[set[str], set[str]]:
    """Layers and the operators all of whose activations come from them.

    Returns:
        Their names, and the tensors that need not be rounded: the kernels of linear layers write
        floats as readily as integers, those of convolutions do not.
    """
    names: set[str] = set()
    made: set[str] = set()
    free: set[str] = set()
    for node in wires.nodes:
        fed = wires.data(node)
        if node.name in layers:
            unrounded = node.op_type in _FLOATS_TOO
        elif _has_kernel(node, wires) and fed and all(i in made for i in fed):
            if known is not None and not all(t in known for t in (*fed, *node.output)):
                continue
            unrounded = all(i in free for i in fed)
        else:
            continue
        names.add(node.name)
        made.update(node.output)
        if unrounded:
            free.update(node.output)
    return names, free


def _has_kernel(node: Any, wires: Wires) -> bool:
    """Whether an operator works on integers as it does on floats."""
    options = {a.name: a for a in node.attribute}
    if node.op_type == "Clip":
        bounds = _clipping(node.output[0], wires)
        # it vanishes into a range, and every range holds zero
        return all(not i or i in wires.held for i in node.input[1:]) and (
            bounds.low <= 0 <= bounds.high
        )
    if node.op_type == "MaxPool" and any(node.output[1:]):
        return False  # it also gives places, which are no values of its input
    if node.op_type == "Resize":
        return "mode" not in options or options["mode"].s == b"nearest"
    if node.op_type == "Pad":
        fill = node.input[2] if len(node.input) > 2 else ""
        constant = "mode" not in options or options["mode"].s == b"constant"
        return not constant or not fill or (fill in wires.held and not wires.value(fill).any())
    if node.op_type == "Gather":
        return node.input[1] in wires.held
    if node.op_type == "HardSigmoid":
        return "alpha" not in options or options["alpha"].f > 0
    known = node.op_type in _MOVING | CLIPPING | _POOLING | _COMPUTING
    return known or "/Subsample" in node.name


def activations(graph: Any, names: Iterable[str]) -> list[str]:
    """Tensors that get a Quantize/Dequantize pair: inputs and outputs of integer nodes."""
    wires, chosen = Wires.of(graph), set(names)
    found: dict[str, None] = {}
    for node in wires.nodes:
        if node.name in chosen:
            found.update(dict.fromkeys((*wires.data(node), *node.output)))
    return list(found)


def multipliers(graph: Any, names: Iterable[str]) -> set[str]:
    """Tensors that scale others: rare values near one matter more than their rounding."""
    chosen = set(names)
    return {
        n.output[0]
        for n in graph.node
        if n.name in chosen and n.op_type in ("HardSigmoid", "Sigmoid")
    }


def shared_ranges(
    graph: Any, names: Iterable[str], ranges: Mapping[str, Range]
) -> dict[str, Range]:
    """One range for all tensors that integers pass between unchanged.

    The runtime moves integers as they are only where both ends have the same scale. Of several
    ranges the union is taken, which clips nothing more.

    Args:
        graph: ``onnx.GraphProto`` that the ranges were taken from.
        names: of integer nodes.
        ranges: tensor name to its own range.
    """
    wires, chosen = Wires.of(graph), set(names)
    nodes = [n for n in wires.nodes if n.name in chosen]
    regions = _Regions(dict(ranges), wires)
    for node in nodes:
        if node.op_type in _MOVING:
            for output in node.output:
                regions.join(node.input[0], output)
    for node in nodes:
        if node.op_type == "Concat":
            for name in wires.data(node):
                regions.join(node.output[0], name, widest=_WIDEST)
    return {name: regions.range(name) for name in ranges}


class _Regions:
    """Groups of tensors of one range.

    Args:
        ranges: tensor name to its own.
        wires: of the graph.
    """

    def __init__(self, ranges: dict[str, Range], wires: Wires) -> None:
        self._ranges = ranges
        self._leader = {name: name for name in ranges}
        self._within = {name: _clipping(name, wires) for name in ranges}

    def range(self, name: str) -> Range:
        """Of a tensor's group."""
        return self._ranges[self._first(name)]

    def join(self, one: str, other: str, widest: float = float("inf")) -> None:
        """Make one group of two, unless a range would become too wide for its clipping.

        Args:
            one, other: tensors; nothing happens where one has no range.
            widest: so many times as wide the range of ``other`` may become.
        """
        if one not in self._leader or other not in self._leader:
            return
        first, second = self._first(one), self._first(other)
        a, b = self._ranges[first], self._ranges[second]
        union = Range(min(a.low, b.low), max(a.high, b.high))
        if first == second or union.high - union.low > widest * (b.high - b.low):
            return
        own, others = self._within[first], self._within[second]
        within = Range(max(own.low, others.low), min(own.high, others.high))
        if union.low < within.low or union.high > within.high:
            return
        self._leader[second] = first
        self._ranges[first], self._within[first] = union, within

    def _first(self, name: str) -> str:
        while self._leader[name] != name:
            name = self._leader[name]
        return name


def _clipping(name: str, wires: Wires) -> Range:
    """What an operator that vanishes leaves to the range of its output to clip."""
    maker = wires.makers.get(name)
    if maker is None or maker.op_type not in CLIPPING:
        return Range(-math.inf, math.inf)
    if maker.op_type == "Relu":
        return Range(0.0, math.inf)
    low, high = (wires.value(i) if i else None for i in (*maker.input[1:], "", "")[:2])
    return Range(
        -math.inf if low is None else low.item(), math.inf if high is None else high.item()
    )

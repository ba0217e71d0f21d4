"""What the nodes of a graph read, those inside of loops and branches included."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import Any


def inner_graphs(node: Any) -> Iterator[Any]:
    """Graphs that a node runs: the body of a loop, the branches of an ``If``."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: Any) -> Iterator[str]:
    """Names of the tensors that a node reads; its graphs may read any tensor around them."""
    yield from (name for name in node.input if name)
    for graph in inner_graphs(node):
        yield from read_in(graph)


def read_in(graph: Any) -> Iterator[str]:
    """Names of the tensors that anything in a graph reads, and of those that it gives."""
    for node in graph.node:
        yield from reads(node)
    yield from (output.name for output in graph.output)


def sort_nodes(model: Any) -> None:
    """Put every node behind those that it reads, in place: only some runtimes sort by themselves.

    Args:
        model: ``onnx.ModelProto``.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel

    nodes = list(model.graph.node)
    if not any(True for node in nodes for _ in inner_graphs(node)):
        ONNXModel(model).topological_sort()
        return
    # the runtime's helper does not see what is read inside of loops and branches
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    before = {i: {makers[n] for n in reads(node) if n in makers} for i, node in enumerate(nodes)}
    order = list(TopologicalSorter(before).static_order())
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in order)

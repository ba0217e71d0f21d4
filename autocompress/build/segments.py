"""A recorded network cut into segments: wherever one value alone flows on.

What is computed from the inputs without any weight (a mask of padding, say) is the same in every
network that is made from one; it does not count, and each segment computes what it needs of it.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from autocompress.build.walk import Key, Steps


@dataclass(frozen=True)
class Segment:
    """A part of a network that starts and ends where one value alone flows.

    Args:
        start: the value that it takes; ``None`` at the network's inputs.
        end: the value that it gives.
    """

    start: Key | None
    end: Key


def common_segments(one: Steps, other: Steps, model: nn.Module) -> list[Segment]:
    """Blocks that two networks made from one model share.

    Args:
        one: of the original.
        other: of what was made from it.
        model: the original; a layer without matrices (a norm, an activation) belongs to the segment
            before it where nothing else reads what it takes.
    """
    ends = set(_cuts(other))
    keys = [key for key in _cuts(one) if key in ends and not _continues(one, key, model)]
    return [Segment(start, end) for start, end in zip([None, *keys[:-1]], keys, strict=True)]


def inside(steps: Steps, segment: Segment) -> list[fx.Node]:
    """The nodes that a segment has to run, values without weights left out."""
    start = None if segment.start is None else steps.nodes[segment.start]
    plain, found = _weightless(steps), []
    between = start is None
    for node in steps.graph.nodes:
        if between and node not in plain and node.op != "get_attr":
            found.append(node)
        between = between or node is start
        if node is steps.nodes[segment.end]:
            break
    return found


def reads_inputs(steps: Steps, segment: Segment) -> bool:
    """Whether a segment needs the network's inputs beside the value that it takes."""
    known = set() if segment.start is None else {steps.nodes[segment.start]}
    return any(n.op == "placeholder" for n in _needed(steps.nodes[segment.end], known))


def run_segment(
    steps: Steps, segment: Segment, value: Tensor | None, inputs: Any, module: nn.Module
) -> Any:
    """What a segment gives.

    Args:
        steps: of the network, for inputs of these shapes.
        segment: to run.
        value: that it takes, not changed; ``None`` where it starts at the inputs.
        inputs: of the network, not changed; ``None`` where the segment needs none.
        module: whose weights count.
    """
    values = {} if inputs is None else steps.begin(inputs)
    if segment.start is not None:
        assert value is not None
        values[steps.nodes[segment.start]] = value.clone()
    end = steps.nodes[segment.end]
    needed = _needed(end, values)
    nodes = [node for node in steps.graph.nodes if node in needed]
    steps.run(values, nodes, module, keep=lambda node: node is end)
    return values[end]


def _needed(end: fx.Node, known: Collection[fx.Node]) -> set[fx.Node]:
    """All that a value is computed from, as far as it is not there yet."""
    found: set[fx.Node] = set()
    left = [end]
    while left:
        node = left.pop()
        if node not in found and node not in known:
            found.add(node)
            left += node.all_input_nodes
    return found


def _weightless(steps: Steps) -> set[fx.Node]:
    """Values that come from the inputs alone."""
    found: set[fx.Node] = set()
    for node in steps.graph.nodes:
        held = node.op == "get_attr" and str(node.target) not in steps.constants
        if not held and node.op != "call_module" and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _cuts(steps: Steps) -> list[Key]:
    """The values that alone flow on, in their order."""
    plain = _weightless(steps)
    alive: set[fx.Node] = set()
    found = []
    for node in steps.graph.nodes:
        if node.op == "output":
            break
        if node not in plain and node.op != "get_attr":
            alive.add(node)
        alive.difference_update(steps.last_uses.get(node, ()))
        several = any(user.target is operator.getitem for user in node.users)
        if alive == {node} and not several:
            found.append(steps.keys[node])
    return found


def _continues(steps: Steps, key: Key, model: nn.Module) -> bool:
    """Whether what reads a value belongs to its segment: a norm, an activation, or the end."""
    readers: Sequence[fx.Node] = list(steps.nodes[key].users)
    if len(readers) != 1:
        return False
    (reader,) = readers
    if reader.op != "call_module":
        read = [node for node in reader.all_input_nodes if node.op != "get_attr"]
        return reader.op == "output" or len(read) == 1
    return all(p.dim() < 2 for p in model.get_submodule(str(reader.target)).parameters())

"""Two networks on their way with the same samples, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.build.walk import Key, Steps, Walk
from autocompress.errors import UnsupportedModel
from autocompress.machine.lock import after_timing
from autocompress.task.memory import Memory
from autocompress.task.nested import batch_size, take

_CHUNK = 128
_KEPT = 6
"""Activations that are kept at once, in sizes of the widest."""

_FEWEST = 64
"""Samples that are needed at least."""


def affordable(wanted: int, widest: int, memory: Memory | None = None) -> int:
    """Samples whose activations fit into memory: as many as wanted, as far as that goes.

    A few activations of both networks are kept for all samples; half of what was free is taken to
    hold them.

    Args:
        wanted: samples.
        widest: elements of the largest activation of one sample.
        memory: what may be used; by default the machine's share.
    """
    free = 2 * (memory or Memory.of()).limit
    return min(wanted, max(_FEWEST, free // (_KEPT * 4 * max(1, widest))))


class PartialRun:
    """One network on its way with some samples.

    Args:
        steps: what it does with them.
        module: whose weights count.
        inputs: the samples.
    """

    def __init__(self, steps: Steps, module: nn.Module, inputs: Any) -> None:
        self.steps, self.module = steps, module
        self.values = steps.begin(inputs)
        self._left = iter([n for n in steps.graph.nodes if n.op != "placeholder"])

    def until(self, key: Key) -> None:
        """Run all that comes before a layer."""
        end = self.steps.nodes[key]
        for node in self._left:
            if node is end:
                self._left = _back(node, self._left)
                return
            self.steps.run(self.values, [node], self.module)

    def ahead(self, key: Key) -> Tensor:
        """What a node gives whose inputs are there already."""
        node = self.steps.nodes[key]
        if node not in self.values:
            self.values[node] = self.steps.value(node, self.values, self.module)
        return self.values[node]

    def known(self, key: Key) -> Any:
        """A value, if it is there."""
        return self.values.get(self.steps.nodes[key])

    def source(self, key: Key) -> Tensor:
        """What a layer is about to take."""
        return self.values[source(self.steps.nodes[key])]


def _back(node: fx.Node, rest: Iterator[fx.Node]) -> Iterator[fx.Node]:
    yield node
    yield from rest


class Lockstep:
    """Two networks with the same layers, on chunks of samples that all wait at the same layer.

    Args:
        one, other: in eval mode; weights may change while they run.
        leaves: names of the layers that are one step each.
        inputs: samples, batch first.

    Attributes:
        old, new: the ways of each chunk through both.
        repeated: names of layers that run more than once.

    Raises:
        UnsupportedModel: they do not run their layers in the same order for all samples.
    """

    def __init__(self, one: nn.Module, other: nn.Module, leaves: Iterable[str], inputs: Any):
        old, new = (Walk(module, leaves, inputs) for module in (one, other))
        chunks = [take(inputs, slice(i, i + _CHUNK)) for i in range(0, batch_size(inputs), _CHUNK)]
        self.old = [PartialRun(old.steps(x), one, x) for x in chunks]
        self.new = [PartialRun(new.steps(x), other, x) for x in chunks]
        self._layers = self._common()
        runs = [str(node.target) for node in self._layers.values()]
        self.repeated = {name for name in runs if runs.count(name) > 1}

    def _common(self) -> dict[Key, fx.Node]:
        """The layers that both networks run."""
        first, *others = (side.steps.layers() for side in (*self.old, *self.new))
        keys = set(first).intersection(*others)
        found = {key: node for key, node in first.items() if key in keys}
        order = list(found)
        if any([key for key in own if key in keys] != order for own in others):
            raise UnsupportedModel("they do not run in the same order for all samples")
        return found

    def layers(self) -> Iterator[tuple[Key, fx.Node]]:
        """The first network's layers, each when both are about to run it."""
        for key, node in self._layers.items():
            after_timing()
            for side in (*self.old, *self.new):
                side.until(key)
            yield key, node

    def comparable(self, key: Key) -> bool:
        """Whether a value that is called so is the same one in both networks.

        Operators are counted within a call of a module: where one is missing, others have its name.
        """
        one, other = self.old[0].steps, self.new[0].steps
        call, found = key[:2], (one.nodes.get(key), other.nodes.get(key))
        if found[0] is None or found[1] is None or found[0].target != found[1].target:
            return False
        return key[2] < 0 or one.operators.get(call) == other.operators.get(call)

    def same(self, key: Key) -> bool:
        """Whether a layer takes the same in both networks."""
        before, now = self.old[0].source(key), self.new[0].source(key)
        return before.shape == now.shape and torch.equal(before, now)


def source(node: fx.Node) -> fx.Node:
    """The node whose value a layer takes."""
    return node.all_input_nodes[0]

"""The sequential re-solve: layer after layer, on inputs that are those of the compressed net.

Both networks run side by side, layer by layer, whatever their forwards do. Where the compressed one
comes to a layer whose inputs have changed, the layer's weights and bias are solved by least
squares, so that its output (after its batch norm) matches what the original has there. Where that
output is added to a stream that has itself drifted, the drift is part of what the layer makes up
for, so that whole block outputs are matched. Batch norms keep the statistics seen on the way: do
not re-estimate them afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.build.solve import (
    accumulate,
    has_statistics,
    place_before_norm,
    statistics,
)
from autocompress.build.walk import Key, Steps, Walk
from autocompress.errors import UnsupportedModel
from autocompress.model.tied import shared_parameters
from autocompress.policy.registry import sets_weights
from autocompress.task.nested import batch_size, take
from autocompress.techniques.attention import opened
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.moments import MatrixLayer, check_inputs, matrix_layer, solvable

_NORM = nn.modules.batchnorm._BatchNorm
_CHUNK = 128
_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@torch.no_grad()
def sequential_resolve(
    model: nn.Module, compressed: Compressed, inputs: Any, left_alone: Collection[str] = ()
) -> Compressed:
    """Re-solve the compressed layers one after another.

    A weight that several layers hold, and one of a layer that runs several times, keeps the bank's
    solution, which is for all of them.

    Args:
        model: uncompressed, in eval mode; not changed.
        compressed: as stitched; its module is changed in place.
        inputs: training inputs, batch first; about a thousand are enough.
        left_alone: names of layers whose weights must stay as they are.

    Returns:
        The same ``compressed``.

    Raises:
        CalibrationError: inputs are empty or not finite.
        UnsupportedModel: the two networks do not run the same layers in the same order; nothing
            has been changed then. Use ``finish: bank_batch_norm`` in the settings.

    References:
        Luo et al., ThiNet, ICCV 2017 (layer-wise reconstruction); He et al., Channel Pruning,
        ICCV 2017, section 3.2 (whole-model pruning on already pruned inputs, residual matching).
    """
    check_inputs(inputs)
    try:
        _Resolver(model, compressed, inputs, left_alone).run()
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"The sequential re-solve runs networks layer by layer, but {error}. Set "
            "`settings.finish: bank_batch_norm`."
        ) from error
    return compressed


class _Side:
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

    def known(self, key: Key | None) -> Any:
        """A value, if it is there."""
        return self.values.get(self.steps.nodes.get(key))  # type: ignore[arg-type]  # None gives none

    def source(self, key: Key) -> Tensor:
        """What a layer is about to take."""
        return self.values[_source(self.steps.nodes[key])]


def _back(node: fx.Node, rest: Iterator[fx.Node]) -> Iterator[fx.Node]:
    yield node
    yield from rest


@dataclass(frozen=True)
class _Target:
    """What follows a layer: its batch norm, and the addition that its output flows into."""

    norm: str | None
    end: Key
    other: Key | None


class _Resolver:
    """Runs both networks in lockstep on chunks that all wait at the same layer."""

    def __init__(
        self, model: nn.Module, compressed: Compressed, inputs: Any, left_alone: Collection[str]
    ) -> None:
        self.model, self.small = opened(model), opened(compressed.module)
        self.compressed = compressed
        self.kept = {name for places in shared_parameters(model) for name, _ in places}
        self.kept.update(left_alone)
        self.ridge = compressed.settings.ridge
        self.sliced: set[Key] = set()  # layers that lost outputs and are else as they were
        self.leaves = {
            name: owner for owner in compressed.parts for name in _leaves(owner, model, self.model)
        }
        old, new = (Walk(m, self.leaves, inputs) for m in (self.model, self.small))
        chunks = [take(inputs, slice(i, i + _CHUNK)) for i in range(0, batch_size(inputs), _CHUNK)]
        self.old = [_Side(old.steps(x), self.model, x) for x in chunks]
        self.new = [_Side(new.steps(x), self.small, x) for x in chunks]
        self.layers = self._common()
        runs = [str(node.target) for node in self.layers.values()]
        self.kept.update(name for name in runs if runs.count(name) > 1)

    def _common(self) -> dict[Key, fx.Node]:
        """The layers that both networks run."""
        first, *others = (side.steps.layers() for side in (*self.old, *self.new))
        keys = set(first).intersection(*others)
        found = {key: node for key, node in first.items() if key in keys}
        order = list(found)
        if any([key for key in own if key in keys] != order for own in others):
            raise UnsupportedModel("they do not run in the same order for all samples")
        return found

    def run(self) -> None:
        for key, node in self.layers.items():
            for side in (*self.old, *self.new):
                side.until(key)
            self._prepare(key, node)

    def _prepare(self, key: Key, node: fx.Node) -> None:
        """Solve or re-norm what the compressed network is about to run."""
        name = str(node.target)
        original = self.model.get_submodule(name)
        if isinstance(original, _NORM):
            source = self.old[0].steps.keys.get(_source(node))
            if source not in self.sliced and not self._same(key):
                self._restate(name, [side.source(key) for side in self.new])
            return
        layer = self._last_part(name)
        if layer is None or not self._changed(key, name):
            return
        if layer.weight.shape[0] != matrix_layer(self.model, name).weight.shape[0]:
            if self._only_sliced(key, name):
                self.sliced.add(key)
            return  # its own outputs are pruned: the norm after it takes the new statistics
        target = self._target(key, node)
        wanted = self._wanted(key, target)
        fed = [self._front(name, side.source(key)) for side in self.new]
        zeros = None
        if sets_weights(self._policy(name)):
            zeros = layer.weight.flatten(1) == 0
        self._solve(layer, target.norm, fed, wanted, zeros)

    def _policy(self, name: str) -> Any:
        return self.compressed.policy[self.leaves[name]]

    def _parts(self, name: str) -> tuple[str, ...]:
        return self.compressed.parts.get(name, (name,))

    def _last_part(self, name: str) -> MatrixLayer | None:
        """The module whose weights make the layer's outputs, if they can be solved."""
        if name in self.kept or name not in self.leaves or self.leaves[name] in self.kept:
            return None
        layer = self.small.get_submodule(self._parts(name)[-1])
        if not solvable(layer):
            return None
        return layer if getattr(layer, "groups", 1) == 1 else None

    def _front(self, name: str, x: Tensor) -> Tensor:
        """Inputs of a factorized layer's last part."""
        for part in self._parts(name)[:-1]:
            x = self.small.get_submodule(part)(x)
        return x

    def _same(self, key: Key) -> bool:
        """Whether a layer takes in both networks the same."""
        before, now = self.old[0].source(key), self.new[0].source(key)
        return before.shape == now.shape and torch.equal(before, now)

    def _changed(self, key: Key, name: str) -> bool:
        if len(self._parts(name)) > 1 or not self._same(key):
            return True
        a = matrix_layer(self.model, name).weight
        b = matrix_layer(self.small, name).weight
        return a.shape != b.shape or not torch.equal(a, b)

    def _only_sliced(self, key: Key, name: str) -> bool:
        """Whether the outputs that are left are those of the original."""
        kept = not sets_weights(self._policy(name))
        return len(self._parts(name)) == 1 and kept and self._same(key)

    def _target(self, key: Key, node: fx.Node) -> _Target:
        """Follow a layer's output to its norm and to the addition it flows into."""
        keys = self.old[0].steps.keys
        norm, end = None, node
        following = list(end.users)
        if (
            len(following) == 1
            and following[0].op == "call_module"
            and has_statistics(self.model.get_submodule(str(following[0].target)))
            and str(following[0].target) not in self.kept
        ):
            end = following[0]
            norm = str(end.target)
            following = list(end.users)
        if len(following) == 1 and following[0].target in _ADDITIONS and not following[0].kwargs:
            pair = [a for a in following[0].args[:2] if isinstance(a, fx.Node)]
            others = [a for a in pair if a is not end]
            if len(pair) == 2 and len(others) == 1:
                return _Target(norm, keys[end], keys.get(others[0]))
        return _Target(norm, keys[end], None)

    def _wanted(self, key: Key, target: _Target) -> list[Tensor]:
        """The original's output after the norm, and the drift of the stream it is added to."""
        found = []
        for old, new in zip(self.old, self.new, strict=True):
            old.ahead(key)
            value = old.ahead(target.end)
            o, n = old.known(target.other), new.known(target.other)
            if o is not None and n is not None and o.shape == n.shape == value.shape:
                value = value + o - n
            found.append(value)
        return found

    def _solve(
        self,
        layer: MatrixLayer,
        norm: str | None,
        fed: list[Tensor],
        wanted: list[Tensor],
        zeros: Tensor | None,
    ) -> None:
        """Least squares with a ridge toward the weights that are there; ``zeros`` stay zero."""
        weight = layer.weight
        flat, bias = weight.flatten(1).double(), torch.zeros(len(weight), dtype=torch.float64)
        if layer.bias is not None:
            bias = layer.bias.double()
        module = self.small.get_submodule(norm) if norm is not None else None
        if module is not None:
            assert isinstance(module, _NORM)
            mean, variance = statistics(module)
            scale = module.weight.double() / (variance.double() + module.eps).sqrt()
            bias = module.bias.double() + scale * (bias - mean.double())
            flat = flat * scale[:, None]
        gram, cross = accumulate(layer, fed, wanted)
        damping = self.ridge * gram.diagonal()[:-1].mean()
        index = torch.arange(flat.shape[1])
        gram[index, index] += damping
        if layer.bias is None and module is None:
            right = cross[:-1] + damping * flat.T
            weight.copy_(_solved(gram[:-1, :-1], right, zeros).T.view_as(weight))
            return
        cross[:-1] += damping * flat.T
        solved = _solved(gram, cross, zeros)
        new_weight, new_bias = solved[:-1].T, solved[-1]
        if module is None:
            assert layer.bias is not None
            weight.copy_(new_weight.reshape(weight.shape))
            layer.bias.copy_(new_bias)
            return
        place_before_norm(layer, module, new_weight, new_bias, gram, damping)

    def _restate(self, name: str, values: list[Tensor]) -> None:
        """Give a batch norm the statistics of the compressed network, unless it was just solved."""
        norm = self.small.get_submodule(name)
        assert isinstance(norm, _NORM)
        if norm.running_mean is None or norm.running_var is None:
            return
        dims = [0, *range(2, values[0].dim())]
        means = torch.stack([v.double().mean(dims) for v in values])
        squares = torch.stack([(v.double() ** 2).mean(dims) for v in values])
        sizes = torch.tensor([len(v) for v in values], dtype=torch.float64)[:, None] / sum(
            len(v) for v in values
        )
        mean = (means * sizes).sum(0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(((squares * sizes).sum(0) - mean**2).clamp_min(0))


def _solved(gram: Tensor, right: Tensor, zeros: Tensor | None) -> Tensor:
    """Solve for all outputs at once, or for each on the weights that may be other than zero.

    Args:
        gram: ``(n, n)``; what comes after the weights' inputs (a constant) is free.
        right: ``(n, outputs)``.
        zeros: ``(outputs, inputs)``, weights that stay zero.
    """
    if zeros is None:
        return torch.linalg.solve(gram, right)
    found = torch.zeros_like(right)
    for i, row in enumerate(zeros):
        free = torch.ones(len(gram), dtype=torch.bool)
        free[: len(row)] = ~row
        found[free, i] = torch.linalg.solve(gram[free][:, free], right[free, i])
    return found


def _leaves(name: str, model: nn.Module, opened_model: nn.Module) -> Sequence[str]:
    """The layers that run for one of a policy: itself, or those of an attention."""
    module = opened_model.get_submodule(name)
    if type(module) is type(model.get_submodule(name)):
        return (name,)
    return tuple(f"{name}.{child}" for child, _ in module.named_children())


def _source(node: fx.Node) -> fx.Node:
    """The node whose value a layer takes."""
    return node.all_input_nodes[0]

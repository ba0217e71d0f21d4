"""The sequential re-solve: layer after layer, on inputs that are those of the compressed net.

Both networks run side by side, node by node. Where the compressed one comes to a layer whose inputs
have changed, the layer's weights and bias are solved by least squares, so that its output (after
its batch norm) matches what the original has there. Where that output is added to a stream that
has itself drifted, the drift is part of what the layer makes up for, so that whole block outputs
are matched. Batch norms keep the statistics seen on the way: do not re-estimate them afterwards.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
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
from autocompress.build.walk import Steps
from autocompress.errors import UnsupportedModel
from autocompress.model.tied import shared_parameters
from autocompress.policy.registry import sets_weights
from autocompress.task.nested import batch_size, take
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.moments import MatrixLayer, check_inputs, matrix_layer, solvable

_NORM = nn.modules.batchnorm._BatchNorm
_CHUNK = 128


@dataclass(frozen=True)
class _Target:
    """What follows a layer: its batch norm, and the addition that its output flows into."""

    norm: str | None
    end: fx.Node
    other: fx.Node | None


@torch.no_grad()
def sequential_resolve(
    model: nn.Module, compressed: Compressed, inputs: Any, left_alone: Collection[str] = ()
) -> Compressed:
    """Re-solve the compressed layers one after another.

    A weight that several layers hold keeps the bank's solution, which is for all of them.

    Args:
        model: uncompressed, in eval mode; not changed.
        compressed: as stitched; its module is changed in place.
        inputs: training inputs, batch first; about a thousand are enough.
        left_alone: names of layers whose weights must stay as they are.

    Returns:
        The same ``compressed``.

    Raises:
        CalibrationError: inputs are empty or not finite.
        UnsupportedModel: the model's control flow cannot be traced by torch.fx, or the compressed
            one cannot be run step by step; use ``finish: bank_batch_norm`` in the settings.

    References:
        Luo et al., ThiNet, ICCV 2017 (layer-wise reconstruction); He et al., Channel Pruning,
        ICCV 2017, section 3.2 (whole-model pruning on already pruned inputs, residual matching).
    """
    check_inputs(inputs)
    try:
        two = take(inputs, slice(0, 2))
        steps = Steps(model, compressed.parts, two)
        steps.check(compressed.module, two)
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"The sequential re-solve runs networks step by step, but {error}. Set "
            "`settings.finish: bank_batch_norm`."
        ) from error
    _Resolver(model, compressed, steps, left_alone).run(inputs)
    return compressed


class _Resolver:
    """Runs both networks in lockstep on chunks that all wait at the same node."""

    def __init__(
        self,
        model: nn.Module,
        compressed: Compressed,
        steps: Steps,
        left_alone: Collection[str] = (),
    ) -> None:
        self.model = model
        self.small = compressed.module
        self.compressed = compressed
        self.kept = {name for places in shared_parameters(model) for name, _ in places}
        self.kept.update(left_alone)
        self.ridge = compressed.settings.ridge
        self.steps = steps
        self.sliced: set[fx.Node] = set()  # layers that lost outputs and are else as they were

    def run(self, inputs: Any) -> None:
        old: dict[fx.Node, list[Any]] = {}
        new: dict[fx.Node, list[Any]] = {}
        starts = range(0, batch_size(inputs), _CHUNK)
        fed = [self.steps.feed(take(inputs, slice(i, i + _CHUNK))) for i in starts]
        feeds = iter(list(values) for values in zip(*fed, strict=True))
        chunks = len(fed)
        ahead: dict[fx.Node, list[Any]] = {}
        for node in self.steps.graph.nodes:
            if node.op == "placeholder":
                old[node] = new[node] = next(feeds)
                continue
            if node.op == "output":
                break
            old[node] = ahead.pop(node, []) or self._values(node, old, self.model, chunks)
            self._prepare(node, old, new, ahead, chunks)
            new[node] = self._values(node, new, self.small, chunks)
            for done in self.steps.last_uses.get(node, ()):
                old.pop(done, None)
                new.pop(done, None)

    def _values(
        self, node: fx.Node, env: Mapping[fx.Node, list[Any]], module: nn.Module, chunks: int
    ) -> list[Any]:
        return [
            self.steps.value(node, {n: env[n][i] for n in node.all_input_nodes}, module)
            for i in range(chunks)
        ]

    def _prepare(
        self,
        node: fx.Node,
        old: dict[fx.Node, list[Any]],
        new: dict[fx.Node, list[Any]],
        ahead: dict[fx.Node, list[Any]],
        chunks: int,
    ) -> None:
        """Solve or re-norm what the compressed network is about to run."""
        name = str(node.target)
        if node.op != "call_module" or not self.compressed.parts.get(name, (name,)):
            return  # not a module, or one that is gone
        layer = self._last_part(name)
        original = self.model.get_submodule(name)
        if isinstance(original, _NORM):
            source = _source(node)
            if source not in self.sliced and not _same(old[source], new[source]):
                self._restate(name, new[source])
            return
        if name not in self.compressed.parts or layer is None or not self._changed(node, old, new):
            return
        if layer.weight.shape[0] != matrix_layer(self.model, name).weight.shape[0]:
            if self._only_sliced(node, old, new):
                self.sliced.add(node)
            return  # its own outputs are pruned: the norm after it takes the new statistics
        target = self._target(node)
        wanted = self._wanted(target, node, old, new, ahead, chunks)
        fed = [self._front(name, x) for x in new[_source(node)]]
        zeros = None
        if sets_weights(self.compressed.policy[name]):
            zeros = layer.weight.flatten(1) == 0
        self._solve(layer, target.norm, fed, wanted, zeros)

    def _last_part(self, name: str) -> MatrixLayer | None:
        """The module whose weights make the layer's outputs, if they can be solved."""
        if name in self.kept:
            return None
        parts = self.compressed.parts.get(name, (name,))
        layer = self.small.get_submodule(parts[-1])
        if not solvable(layer):
            return None
        return layer if getattr(layer, "groups", 1) == 1 else None

    def _front(self, name: str, x: Tensor) -> Tensor:
        """Inputs of a factorized layer's last part."""
        for part in self.compressed.parts[name][:-1]:
            x = self.small.get_submodule(part)(x)
        return x

    def _changed(
        self, node: fx.Node, old: Mapping[fx.Node, list[Any]], new: Mapping[fx.Node, list[Any]]
    ) -> bool:
        if len(self.compressed.parts[str(node.target)]) > 1:
            return True
        if not _same(old[_source(node)], new[_source(node)]):
            return True
        a = matrix_layer(self.model, str(node.target)).weight
        b = matrix_layer(self.small, str(node.target)).weight
        return a.shape != b.shape or not torch.equal(a, b)

    def _only_sliced(
        self, node: fx.Node, old: Mapping[fx.Node, list[Any]], new: Mapping[fx.Node, list[Any]]
    ) -> bool:
        """Whether the outputs that are left are those of the original."""
        name = str(node.target)
        one_part = len(self.compressed.parts[name]) == 1
        kept = not sets_weights(self.compressed.policy[name])
        return one_part and kept and _same(old[_source(node)], new[_source(node)])

    def _target(self, node: fx.Node) -> _Target:
        """Follow a layer's output to its norm and to the addition it flows into."""
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
        if len(following) == 1 and following[0].target in (
            operator.add,
            operator.iadd,
            torch.add,
            "add",
            "add_",
        ):
            pair = [a for a in following[0].args[:2] if isinstance(a, fx.Node)]
            others = [a for a in pair if a is not end]
            if len(pair) == 2 and len(others) == 1:
                return _Target(norm, end, others[0])
        return _Target(norm, end, None)

    def _wanted(
        self,
        target: _Target,
        node: fx.Node,
        old: dict[fx.Node, list[Any]],
        new: dict[fx.Node, list[Any]],
        ahead: dict[fx.Node, list[Any]],
        chunks: int,
    ) -> list[Tensor]:
        """The original's output after the norm, and the drift of the stream it is added to."""
        values = old[node]
        if target.end is not node:
            values = ahead[target.end] = self._values(target.end, old, self.model, chunks)
        other = target.other
        if other is None or other not in old or other not in new:
            return values
        return [
            v + o - n if o.shape == n.shape == v.shape else v
            for v, o, n in zip(values, old[other], new[other], strict=True)
        ]

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


def _source(node: fx.Node) -> fx.Node:
    """The node whose value a layer takes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _same(before: list[Tensor], now: list[Tensor]) -> bool:
    return before[0].shape == now[0].shape and torch.equal(before[0], now[0])

"""The sequential re-solve: layer after layer, on inputs that are those of the compressed net.

Both networks run side by side, node by node. Where the compressed one comes to a layer whose inputs
have changed, the layer's weights and bias are solved by least squares, so that its output (after
its batch norm) matches what the original has there. Where that output is added to a stream that
has itself drifted, the drift is part of what the layer makes up for, so that whole block outputs
are matched. Batch norms keep the statistics seen on the way: do not re-estimate them afterwards.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.errors import UnsupportedModel
from autocompress.policy.registry import techniques
from autocompress.task.calling import parameters
from autocompress.task.nested import batch_size, take
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.moments import MatrixLayer, check_inputs, matrix_layer, rows, solvable

_NORM = nn.modules.batchnorm._BatchNorm
_CHUNK = 128
_ROWS = 262_144


class _Tracer(fx.Tracer):
    """Keeps every layer that a policy may replace as one node."""

    def __init__(self, leaves: frozenset[str]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self.leaves or super().is_leaf_module(module, name)


@dataclass(frozen=True)
class _Target:
    """What follows a layer: its batch norm, and the addition that its output flows into."""

    norm: str | None
    end: fx.Node
    other: fx.Node | None


@torch.no_grad()
def sequential_resolve(model: nn.Module, compressed: Compressed, inputs: Any) -> Compressed:
    """Re-solve the compressed layers one after another.

    Args:
        model: uncompressed, in eval mode; not changed.
        compressed: as stitched; its module is changed in place.
        inputs: training inputs, batch first; about a thousand are enough.

    Returns:
        The same ``compressed``.

    Raises:
        CalibrationError: inputs are empty or not finite.
        UnsupportedModel: the model's control flow cannot be traced by torch.fx; use
            ``finish: bank_batch_norm`` in the settings.

    References:
        Luo et al., ThiNet, ICCV 2017 (layer-wise reconstruction); He et al., Channel Pruning,
        ICCV 2017, section 3.2 (whole-model pruning on already pruned inputs, residual matching).
    """
    check_inputs(inputs)
    leaves = frozenset(compressed.parts)
    try:
        given, left_out = parameters(model, inputs)
        graph = _Tracer(leaves).trace(model, left_out or None)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(
            f"The sequential re-solve needs a model that torch.fx can trace: "
            f"{error}. Set `settings.finish: bank_batch_norm`."
        ) from error
    _Resolver(model, compressed, graph).run({**left_out, **given}, batch_size(inputs))
    return compressed


class _Resolver:
    """Runs both networks in lockstep on chunks that all wait at the same node."""

    def __init__(self, model: nn.Module, compressed: Compressed, graph: fx.Graph) -> None:
        self.model = model
        self.small = compressed.module
        self.compressed = compressed
        self.ridge = compressed.settings.ridge
        self.graph = graph
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.uses = self._last_uses()
        self.sliced: set[fx.Node] = set()  # layers that lost outputs and are else as they were

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        """Which values can be dropped after a node has run."""
        dead: dict[fx.Node, list[fx.Node]] = {}
        for node in self.graph.nodes:
            last = max(node.users, key=self.position.__getitem__, default=node)
            dead.setdefault(last, []).append(node)
        return dead

    def run(self, given: Mapping[str, Any], count: int) -> None:
        old: dict[fx.Node, list[Any]] = {}
        new: dict[fx.Node, list[Any]] = {}
        parts = [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]
        order = list(inspect.signature(self.model.forward).parameters)
        feeds = iter([[take(given.get(name), part) for part in parts] for name in order])
        chunks = len(parts)
        ahead: dict[fx.Node, list[Any]] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                old[node] = new[node] = next(feeds)
                continue
            if node.op == "output":
                break
            old[node] = ahead.pop(node, []) or self._values(node, old, self.model, chunks)
            self._prepare(node, old, new, ahead, chunks)
            new[node] = self._values(node, new, self.small, chunks)
            for done in self.uses.get(node, ()):
                old.pop(done, None)
                new.pop(done, None)

    def _values(
        self, node: fx.Node, env: Mapping[fx.Node, list[Any]], module: nn.Module, chunks: int
    ) -> list[Any]:
        out = []
        for i in range(chunks):
            chunk = {n: env[n][i] for n in node.all_input_nodes}
            args = fx.map_arg(node.args, chunk.__getitem__)
            kwargs = fx.map_arg(node.kwargs, chunk.__getitem__)
            if node.op == "call_module":
                out.append(module.get_submodule(str(node.target))(*args, **kwargs))
            elif node.op == "call_function":
                assert callable(node.target)
                out.append(node.target(*args, **kwargs))
            elif node.op == "call_method":
                out.append(getattr(args[0], str(node.target))(*args[1:], **kwargs))
            else:
                value: Any = module
                for part in str(node.target).split("."):
                    value = getattr(value, part)
                out.append(value)
        # in-place operators would change what an earlier node holds
        return [v.clone() if _in_place(node, module) and isinstance(v, Tensor) else v for v in out]

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
        if node.op != "call_module":
            return
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
        self._solve(layer, target.norm, fed, wanted)

    def _last_part(self, name: str) -> MatrixLayer | None:
        """The module whose weights make the layer's outputs, if they can be solved."""
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
        policy = self.compressed.policy[name]
        kept = not any(t.stage == "weights" and t.active(policy) for t in techniques())
        return one_part and kept and _same(old[_source(node)], new[_source(node)])

    def _target(self, node: fx.Node) -> _Target:
        """Follow a layer's output to its norm and to the addition it flows into."""
        norm, end = None, node
        following = list(end.users)
        if (
            len(following) == 1
            and following[0].op == "call_module"
            and isinstance(self.model.get_submodule(str(following[0].target)), _NORM)
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
        self, layer: MatrixLayer, norm: str | None, fed: list[Tensor], wanted: list[Tensor]
    ) -> None:
        """Least squares with a ridge toward the weights that are there."""
        weight = layer.weight
        flat, bias = weight.flatten(1).double(), torch.zeros(len(weight), dtype=torch.float64)
        if layer.bias is not None:
            bias = layer.bias.double()
        module = self.small.get_submodule(norm) if norm is not None else None
        if module is not None:
            assert isinstance(module, _NORM)
            mean, variance = _statistics(module)
            scale = module.weight.double() / (variance.double() + module.eps).sqrt()
            bias = module.bias.double() + scale * (bias - mean.double())
            flat = flat * scale[:, None]
        gram, cross = self._accumulate(layer, fed, wanted)
        damping = self.ridge * gram.diagonal()[:-1].mean()
        index = torch.arange(flat.shape[1])
        gram[index, index] += damping
        if layer.bias is None and module is None:
            right = cross[:-1] + damping * flat.T
            weight.copy_(torch.linalg.solve(gram[:-1, :-1], right).T.view_as(weight))
            return
        cross[:-1] += damping * flat.T
        solved = torch.linalg.solve(gram, cross)
        new_weight, new_bias = solved[:-1].T, solved[-1]
        if module is None:
            assert layer.bias is not None
            weight.copy_(new_weight.reshape(weight.shape))
            layer.bias.copy_(new_bias)
            return
        self._place(layer, module, new_weight, new_bias, gram, damping)

    @staticmethod
    def _place(
        layer: MatrixLayer,
        norm: _NORM,
        weight: Tensor,
        bias: Tensor,
        gram: Tensor,
        damping: Tensor,
    ) -> None:
        """Split a solved affine map into convolution and batch norm.

        The norm's statistics become those of the convolution's true outputs, so that training mode
        sees the same function as eval mode.
        """
        second, mean = gram[:-1, :-1].clone(), gram[-1, :-1]
        index = torch.arange(len(second))
        second[index, index] -= damping
        centre = weight @ mean
        variance = torch.einsum("od,de,oe->o", weight, second, weight) - centre**2
        spread = (variance.clamp_min(0) + norm.eps).sqrt()
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.zero_()
        running_mean, running_var = _statistics(norm)
        running_mean.copy_(centre)
        running_var.copy_(variance.clamp_min(0))
        norm.weight.copy_(spread)
        norm.bias.copy_(bias + centre)

    @staticmethod
    def _accumulate(
        layer: MatrixLayer, fed: list[Tensor], wanted: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean outer products ``[x, 1][x, 1]'`` and ``[x, 1] t'``, in double precision."""
        gram: Tensor | None = None
        cross: Tensor | None = None
        count = 0
        generator = torch.Generator().manual_seed(0)
        for x, t in zip(fed, wanted, strict=True):
            found = rows(layer, x)[0]
            goal = (
                t.reshape(-1, t.shape[-1])
                if isinstance(layer, nn.Linear)
                else t.flatten(2).transpose(1, 2).reshape(len(found), -1)
            )
            limit = max(_ROWS // len(fed), 8 * found.shape[1])
            if len(found) > limit:
                index = torch.randint(len(found), (limit,), generator=generator)
                found, goal = found[index], goal[index]
            found = torch.cat([found, found.new_ones(len(found), 1)], 1)
            g, c = found.T @ found, found.T @ goal
            gram = g.double() if gram is None else gram + g
            cross = c.double() if cross is None else cross + c
            count += len(found)
        assert gram is not None
        assert cross is not None
        return gram / count, cross / count

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


def _source(node: fx.Node) -> fx.Node:
    """The node whose value a layer takes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _statistics(norm: _NORM) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a batch norm that keeps them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _same(before: list[Tensor], now: list[Tensor]) -> bool:
    return before[0].shape == now[0].shape and torch.equal(before[0], now[0])


def _in_place(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        return bool(node.kwargs.get("inplace", False)) or node.target is operator.iadd
    return node.op == "call_method" and str(node.target).endswith("_")

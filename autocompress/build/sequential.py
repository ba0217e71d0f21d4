"""The sequential re-solve: layer after layer, on inputs that are those of the compressed net.

Both networks run side by side, layer by layer, whatever their forwards do. Where the compressed one
comes to a layer whose inputs have changed, the layer's weights and bias are solved by least
squares, so that its output (after its batch norm) matches what the original has there. Where that
output is added to a stream that has itself drifted, the drift is part of what the layer makes up
for, so that whole block outputs are matched. Batch norms keep the statistics seen on the way: do
not re-estimate them afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.build.lockstep import Lockstep, source
from autocompress.build.solve import (
    accumulate,
    damp,
    has_statistics,
    place_before_norm,
    refit,
    solved_with,
    statistics,
)
from autocompress.build.walk import Key
from autocompress.errors import UnsupportedModel
from autocompress.model.attention import opened
from autocompress.model.tied import shared_parameters
from autocompress.model.weights import load_tensors, state_tensors
from autocompress.policy.registry import sets_weights
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.moments import MatrixLayer, check_inputs, matrix_layer, solvable

_NORM = nn.modules.batchnorm._BatchNorm
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
            is changed then. Use ``finish: bank_batch_norm`` in the settings.

    References:
        Luo et al., ThiNet, ICCV 2017 (layer-wise reconstruction); He et al., Channel Pruning,
        ICCV 2017, section 3.2 (whole-model pruning on already pruned inputs, residual matching).
    """
    check_inputs(inputs)
    before = {n: t.clone() for n, t in state_tensors(compressed.module).items()}
    try:
        _SequentialSolve(model, compressed, inputs, left_alone).run()
    except UnsupportedModel as error:
        load_tensors(compressed.module, before)  # the way may change with the weights, midway
        raise UnsupportedModel(
            f"The sequential re-solve runs networks layer by layer, but {error}. Set "
            "`settings.finish: bank_batch_norm`."
        ) from error
    return compressed


@dataclass(frozen=True)
class _Destination:
    """What follows a layer: its batch norm, and the addition that its output flows into."""

    norm: str | None
    end: Key
    other: Key | None


class _SequentialSolve:
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
        self.pair = Lockstep(self.model, self.small, self.leaves, inputs)
        self.old, self.new = self.pair.old, self.pair.new
        self.kept.update(self.pair.repeated)

    def run(self) -> None:
        for key, node in self.pair.layers():
            self._prepare(key, node)

    def _prepare(self, key: Key, node: fx.Node) -> None:
        """Solve or re-norm what the compressed network is about to run."""
        name = str(node.target)
        if not self._parts(name):
            return  # it is gone
        original = self.model.get_submodule(name)
        if isinstance(original, _NORM):
            taken = self.old[0].steps.keys.get(source(node))
            if taken not in self.sliced and not self.pair.same(key):
                self._restate(name, [side.source(key) for side in self.new])
            return
        layer = self._last_part(name)
        if layer is None or not self._changed(key, name):
            return
        if layer.weight.shape[0] != matrix_layer(self.model, name).weight.shape[0]:
            if self._only_sliced(key, name):
                self.sliced.add(key)
            return  # its own outputs are pruned: the norm after it takes the new statistics
        destination = self._destination(key, node)
        wanted = self._wanted(key, destination)
        fed = [self._front(name, side.source(key)) for side in self.new]
        zeros = None
        if sets_weights(self._policy(name)):
            zeros = layer.weight.flatten(1) == 0
        self._solve(layer, destination.norm, fed, wanted, zeros)

    def _policy(self, name: str) -> Any:
        return self.compressed.policy[self.leaves[name]]

    def _parts(self, name: str) -> tuple[str, ...]:
        return self.compressed.parts.get(name, (name,))

    def _last_part(self, name: str) -> MatrixLayer | None:
        """The module whose weights make the layer's outputs, if they can be solved."""
        if name in self.kept or name not in self.leaves or self.leaves[name] in self.kept:
            return None
        layer = self.small.get_submodule(self._parts(name)[-1])
        if not solvable(layer) or not isinstance(self.model.get_submodule(name), MatrixLayer):
            return None  # the map behind a smaller table is the best one for its rows
        return layer if getattr(layer, "groups", 1) == 1 else None

    def _front(self, name: str, x: Tensor) -> Tensor:
        """Inputs of a factorized layer's last part."""
        for part in self._parts(name)[:-1]:
            x = self.small.get_submodule(part)(x)
        return x

    def _changed(self, key: Key, name: str) -> bool:
        if len(self._parts(name)) > 1 or not self.pair.same(key):
            return True
        a = matrix_layer(self.model, name).weight
        b = matrix_layer(self.small, name).weight
        return a.shape != b.shape or not torch.equal(a, b)

    def _only_sliced(self, key: Key, name: str) -> bool:
        """Whether the outputs that are left are those of the original."""
        kept = not sets_weights(self._policy(name))
        return len(self._parts(name)) == 1 and kept and self.pair.same(key)

    def _destination(self, key: Key, node: fx.Node) -> _Destination:
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
            other = keys.get(others[0]) if len(pair) == 2 and len(others) == 1 else None
            if other is not None and self.pair.comparable(other):
                return _Destination(norm, keys[end], other)
        return _Destination(norm, keys[end], None)

    def _wanted(self, key: Key, destination: _Destination) -> list[Tensor]:
        """The original's output after the norm, and the drift of the stream it is added to."""
        found = []
        for old, new in zip(self.old, self.new, strict=True):
            old.ahead(key)
            value = old.ahead(destination.end)
            if destination.other is not None:
                o, n = old.known(destination.other), new.known(destination.other)
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
        equations = accumulate(layer, fed, wanted)
        if equations is None:
            return
        if norm is None:
            refit(layer, equations, self.ridge, zeros)
            return
        module = self.small.get_submodule(norm)
        assert isinstance(module, _NORM)
        _, variance = statistics(module)
        scale = module.weight.double() / (variance.double() + module.eps).sqrt()
        flat = layer.weight.flatten(1).double() * scale[:, None]
        gram, cross = equations.gram.clone(), equations.cross.clone()
        damping = damp(gram, cross, flat, equations.ridge(flat, self.ridge))
        solved = solved_with(gram, cross, zeros)
        place_before_norm(layer, module, solved[:-1].T, solved[-1], gram, damping)

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


def _leaves(name: str, model: nn.Module, opened_model: nn.Module) -> Sequence[str]:
    """The layers that run for one of a policy: itself, or those of an attention."""
    module = opened_model.get_submodule(name)
    if type(module) is type(model.get_submodule(name)):
        return (name,)
    return tuple(f"{name}.{child}" for child, _ in module.named_children())

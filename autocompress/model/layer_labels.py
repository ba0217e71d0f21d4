"""What each kind of layer does to labels: which channels it reads, and which it makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from autocompress.model.follow import Follower
from autocompress.model.labels import Labels, along
from autocompress.model.sides import LayerSide, ModuleSide
from autocompress.model.tracing_stubs import RECURRENT, is_attention, windowed

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Axis:
    """One side of a layer: ``out``, ``in``, or ``both`` where they are the same.

    Args:
        module: dotted name.
        side: of the module.
        atoms: one per channel.
    """

    module: str
    side: LayerSide
    atoms: Tensor


def is_layer(module: nn.Module) -> bool:
    """Whether a module is taken as one step, whatever its forward does."""
    known = (*LAYERS, *RECURRENT, *_NORMS, nn.Embedding, nn.MultiheadAttention)
    return isinstance(module, known) or is_attention(module) or windowed(module)


def depthwise(module: nn.Module) -> bool:
    """Whether every channel of a convolution has one filter of its own."""
    return (
        isinstance(module, nn.modules.conv._ConvNd)
        and module.groups > 1
        and module.groups == module.out_channels == module.in_channels
    )


class LayerLabels:
    """Labels what layers put out, and ties what they read to their weights.

    Args:
        follower: labels of all tensors.
    """

    def __init__(self, follower: Follower) -> None:
        self.axes: dict[ModuleSide, Axis] = {}
        self._follower = follower
        self._atoms = follower.atoms
        self._of_weight: dict[tuple[int, str], tuple[Any, Tensor]] = {}

    def ran(self, name: str, module: Any, inputs: Any, outputs: Any) -> None:
        """A layer was called.

        Args:
            name: of the layer.
            module: the layer.
            inputs: what it was called with, nested.
            outputs: what it gave, nested.
        """
        if is_attention(module) or windowed(module) or isinstance(module, nn.Embedding):
            self._fixed(f"{name} fixes the width of these channels", inputs, outputs)
        elif isinstance(module, RECURRENT):
            self._recurrent(name, module, inputs, outputs)
        elif isinstance(module, nn.Linear):
            self._linear(name, module, inputs[0], outputs)
        elif isinstance(module, nn.modules.conv._ConvNd):
            self._convolution(name, module, inputs[0], outputs)
        else:
            self._norm(name, module, inputs[0], outputs)

    def _axis(self, name: str, module: Any, side: LayerSide, size: int) -> Tensor:
        """The atoms of a side; layers with one weight share them."""
        if (name, side) not in self.axes:
            weight = module._parameters.get("weight")
            key = (id(module if weight is None else weight), side)
            if key not in self._of_weight:
                self._of_weight[key] = (weight, self._atoms.new(size))
                if weight is not None and key[0] in self._follower.leaked:
                    held = self._atoms.held(self._follower.leaked[key[0]])
                    self._atoms.unite(self._of_weight[key][1], held)
            self.axes[name, side] = Axis(name, side, self._of_weight[key][1])
        return self.axes[name, side].atoms

    def hold_leaked(self) -> None:
        """Layers whose weight something else reads as well must stay as they are."""
        for (key, _), (_, atoms) in self._of_weight.items():
            if key in self._follower.leaked:
                self._atoms.unite(atoms, self._atoms.held(self._follower.leaked[key]))

    def _read(self, x: Tensor, atoms: Tensor, axis: int) -> None:
        labels = self._follower.get(x)
        if labels is not None:
            self._atoms.unite(labels.base, along(atoms, axis, x.dim()))

    def _made(self, out: Tensor, atoms: Tensor, axis: int) -> None:
        base = along(atoms, axis, out.dim())
        self._follower.put(out, Labels(tuple(out.shape), base))

    def _fixed(self, reason: str, inputs: Any, outputs: Any) -> None:
        held = self._atoms.held(reason)
        for tensor in _floats(inputs):
            self._follower.hold(self._follower.get(tensor), reason)
        for tensor in _floats(outputs):
            self._follower.put(tensor, self._follower.one(tensor, held))

    def _linear(self, name: str, module: Any, x: Tensor, out: Tensor) -> None:
        labels, last = self._follower.get(x), x.dim() - 1
        made = self._axis(name, module, "out", module.out_features)
        if labels is not None and labels.axes and last not in labels.axes:
            # it mixes positions: channels lie along another axis, and pass
            self._atoms.unite(made, self._atoms.held(f"{name} mixes positions, not channels"))
            self._follower.put(out, Labels(tuple(out.shape), labels.base))
            return
        self._read(x, self._axis(name, module, "in", module.in_features), last)
        self._made(out, made, last)

    def _convolution(self, name: str, module: Any, x: Tensor, out: Tensor) -> None:
        axis = x.dim() - len(module.kernel_size) - 1
        if depthwise(module):
            both = self._axis(name, module, "both", module.in_channels)
            self._read(x, both, axis)
            self._made(out, both, axis)
            return
        read = self._axis(name, module, "in", module.in_channels)
        made = self._axis(name, module, "out", module.out_channels)
        for atoms in (read, made) if module.groups > 1 else ():
            # every group loses the same places: the weight holds those of one group
            places = atoms.view(module.groups, -1)
            self._atoms.unite(places, places[:1])
        self._read(x, read, axis)
        self._made(out, made, axis)

    def _norm(self, name: str, module: Any, x: Tensor, out: Tensor) -> None:
        kind = isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
        bare = kind and x.dim() == module._get_no_batch_dim()
        axis = 0 if bare else 1
        both = self._axis(name, module, "both", x.shape[axis])
        if isinstance(module, nn.GroupNorm):
            # a group that lost some of its channels would be normalized in another way
            parts = both.view(module.num_groups, -1)
            self._atoms.unite(parts, parts[:, :1])
        self._read(x, both, axis)
        self._made(out, both, axis)

    def _recurrent(self, name: str, module: Any, inputs: Any, outputs: Any) -> None:
        given, states = inputs[0], inputs[1:]
        x = given.data if isinstance(given, PackedSequence) else given
        y = outputs[0].data if isinstance(outputs[0], PackedSequence) else outputs[0]
        if module.proj_size:
            reason = f"{name} projects its states: its sizes stay"
            self._fixed(reason, states, (y, outputs[1]))
            made = self._axis(name, module, "out", module.hidden_size)
            self._atoms.unite(made, self._atoms.held(reason))
            self._read(x, self._axis(name, module, "in", module.input_size), x.dim() - 1)
            return
        directions = 1 + module.bidirectional
        made = self._axis(name, module, "out", module.hidden_size * directions)
        units = made.view(directions, -1)
        self._atoms.unite(units, units[:1])  # both directions lose the same units
        self._read(x, self._axis(name, module, "in", module.input_size), x.dim() - 1)
        self._made(y, made, y.dim() - 1)
        for state in _floats(states):
            self._read(state, units[0], state.dim() - 1)
        for state in _floats(outputs[1]):
            self._made(state, units[0], state.dim() - 1)


def _floats(value: Any) -> Iterator[Tensor]:
    """The tensors of floating point in nested arguments."""
    if isinstance(value, Tensor):
        if torch.is_floating_point(value):
            yield value
    elif isinstance(value, dict):
        yield from _floats(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _floats(part)

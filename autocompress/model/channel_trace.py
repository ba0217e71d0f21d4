"""One run of a model in which every channel is followed to where it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.model.call_sites import AVERAGED, CALLS, Counted, running_module
from autocompress.model.follow import Follower
from autocompress.model.labels import Atoms, Labels, along, compact
from autocompress.model.layer_labels import LAYERS, Axis, LayerLabels, is_layer
from autocompress.model.plain_operators import PlainOperators
from autocompress.model.tracing_stubs import RECURRENT, is_attention, unfused_attention
from autocompress.task.calling import call
from autocompress.task.dispatch import OperatorMode
from autocompress.task.nested import tensors


@dataclass(frozen=True)
class CallSite:
    """A call that says sizes or places of channels.

    Args:
        module: in whose forward it stands.
        call: its name, see ``call_sites``.
        tensors: ``i`` for the input, ``o0``, ``o1``, ... for what came out, with their labels.
    """

    module: str
    call: str
    tensors: tuple[tuple[str, Labels], ...]


@dataclass
class ChannelTrace:
    """What one run told.

    Args:
        atoms: all channels, and which go together.
        axes: sides of layers.
        sites: calls that say sizes.
        raw: parameters outside of layers that hold channels: module, attribute, labels.
        order: names of the layers that make or hold channels, in the order in which they ran.
        added: pairs of atoms of two streams that were added.
        mixed: atoms that an operator made go together, and its name.
    """

    atoms: Atoms
    axes: tuple[Axis, ...] = ()
    sites: list[CallSite] = field(default_factory=list)
    raw: list[tuple[str, str, Labels]] = field(default_factory=list)
    order: dict[str, None] = field(default_factory=dict)
    added: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    mixed: list[tuple[Tensor, str]] = field(default_factory=list)


def trace_channels(
    model: nn.Module, inputs: Any, follower: type[Follower] = Follower
) -> ChannelTrace:
    """Run a model once and follow its channels.

    Args:
        model: in eval mode; not changed.
        inputs: of one or two samples.
        follower: says what operators do to channels.
    """
    run = _FollowedPass(model, follower)
    for tensor in tensors(inputs):
        if tensor.is_floating_point():
            run.follower.put(
                tensor, Follower.one(tensor, run.atoms.held("the model's inputs go beside them"))
            )
    with run.watched(), torch.no_grad():
        outputs = call(model, inputs)
    for tensor in tensors(outputs):
        run.follower.hold(run.follower.get(tensor), "these are the model's outputs")
    run.layers.hold_leaked()
    untangle(run.atoms, run.follower.tangled)
    _tie_loose(run.atoms, run.follower.met)
    untangle(run.atoms, run.follower.tangled)
    found = run.trace
    found.axes = tuple(run.layers.axes.values())
    found.added, found.mixed = run.follower.added, run.follower.mixed
    found.raw = [
        (module, attribute, raw.labels)
        for raw in run.follower.raw.values()
        for module, attribute in raw.places
    ]
    return found


class _FollowedPass:
    """The modes and hooks of one forward pass."""

    def __init__(self, model: nn.Module, follower: type[Follower]) -> None:
        self.atoms = Atoms()
        self.names = {module: name for name, module in model.named_modules()}
        raw, owned = _parameters(model)
        self.follower = follower(self.atoms, raw, owned)
        self.layers = LayerLabels(self.follower)
        self.trace = ChannelTrace(self.atoms)
        self.layer: nn.Module | None = None
        self.counted: dict[nn.Module, Counted] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch all modules, operators and calls."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with ExitStack() as stack:
            stack.enter_context(unfused_attention())
            for module in self.names:
                before = module.register_forward_pre_hook(self._enter)
                after = module.register_forward_hook(self._leave, with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            # below the mode that notes calls: what replaces an operator calls others by itself
            stack.enter_context(PlainOperators(all_of_them=False))
            stack.enter_context(_Operators(self))
            stack.enter_context(_Calls(self))
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self.layer is None:
            self.counted[module] = Counted()
            if is_layer(module):
                self.layer = module

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        if self.layer is not module:
            return
        name = self.names[module]
        if isinstance(module, (*LAYERS, *RECURRENT)) or is_attention(module):
            self.trace.order.setdefault(name)
        # still inside the layer, so that what is computed here is not followed
        self.layers.ran(name, module, (*args, *kwargs.values()), outputs)
        self.layer = None

    def note(self, name: str, x: Tensor, outputs: Any) -> None:
        """A call that says sizes."""
        module, place = running_module(3)
        if module not in self.counted:
            return
        call = self.counted[module].name(place, name)
        parts = [("i", self.follower.get(x))]
        parts += [(f"o{i}", self.follower.get(y)) for i, y in enumerate(tensors(outputs))]
        if name in AVERAGED and any(labels is not None for _, labels in parts[1:]):
            parts = []  # over other axes than the channels'
        known = tuple((key, labels) for key, labels in parts if labels is not None)
        self.trace.sites.append(CallSite(self.names[module], call, known))


class _Operators(OperatorMode):
    def __init__(self, run: _FollowedPass) -> None:
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.run.layer is None:
            self.run.follower.follow(func, args, kwargs, out)
        return out


class _Calls(TorchFunctionMode):
    def __init__(self, run: _FollowedPass) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if self.run.layer is None and name in CALLS and args and isinstance(args[0], Tensor):
            self.run.note(name, args[0], out)
        return out


def _parameters(model: nn.Module) -> tuple[dict[int, tuple[tuple[str, str], ...]], dict[int, str]]:
    """Parameters and buffers outside of layers with all their places; and those of layers."""
    owned: dict[int, str] = {}
    for name, module in model.named_modules():
        if is_layer(module):
            owned.update({id(p): name for p in module.parameters() if id(p) not in owned})
    raw: dict[int, tuple[tuple[str, str], ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for attribute, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and id(value) not in owned:
                raw[id(value)] = (*raw.get(id(value), ()), (name, attribute))
    return raw, owned


def class_base(classes: Tensor, labels: Labels) -> Tensor:
    """Classes of a tensor's elements, each dimension of size 1 along which they do not differ.

    Elements without a channel are taken to be what stands beside them.
    """
    base = torch.where(labels.base != 0, classes[labels.base], -1)
    for axis in labels.axes:
        base = torch.where(base < 0, base.amax(axis, keepdim=True), base)
    return compact(base)


def untangle(atoms: Atoms, tangled: Iterable[Labels]) -> None:
    """Unite until the channels of every tensor lie along one of its axes.

    What stays of a tensor must be a block: behind a view as groups, say, every group must lose
    the same places. Of several axes the one is kept that leaves the most channels to choose from.
    """
    left = list(tangled)
    changed = True
    while changed:
        changed = False
        for labels in left:
            base, axes = _lie(atoms, labels)
            if len(axes) < 2:
                continue
            choices = {axis: _choices(base, axis, {atoms.count}) for axis in axes}
            kept = max(axes, key=lambda axis: (choices[axis], axis))
            atoms.unite_along(labels.base, [axis for axis in axes if axis != kept])
            if len(_lie(atoms, labels)[1]) > 1:  # constants stand between the channels
                atoms.unite(labels.base, atoms.held("channels lie along several axes of a tensor"))
            changed = True


def _lie(atoms: Atoms, labels: Labels) -> tuple[Tensor, list[int]]:
    """Free classes of a tensor, and the axes along which they differ."""
    base = class_base(atoms.free_classes(), labels)
    return base, [axis for axis, size in enumerate(base.shape) if size > 1]


def _choices(base: Tensor, axis: int, stuck: set[int]) -> int:
    """Sets of channels that could go if only whole places along an axis did."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = base.movedim(axis, 0).flatten(1)
    values, inner = rows.unique(return_inverse=True)
    places = torch.arange(len(rows))[:, None].expand_as(rows).flatten()
    size = len(rows) + len(values)
    ones = torch.ones(len(places), dtype=torch.int8).numpy()
    pairs = (places.numpy(), len(rows) + inner.flatten().numpy())
    count, found = connected_components(coo_array((ones, pairs), shape=(size, size)), False)
    fixed = {int(found[len(rows) + i]) for i, v in enumerate(values.tolist()) if v in stuck}
    return int(count) - len(fixed)


def _tie_loose(atoms: Atoms, met: Iterable[tuple[Labels, Labels]]) -> None:
    """Parameters outside of layers go along with the channels that they meet, element by element.

    Only along the axis on which these channels lie; along others a parameter stays as it is.
    """
    for stream, loose in met:
        _, axes = _lie(atoms, stream)
        for axis in axes:
            if loose.base.shape[axis] > 1:
                others = [i for i in range(stream.base.dim()) if i != axis]
                channels = stream.base.amax(others) if others else stream.base
                atoms.unite(loose.base, along(channels, axis, loose.base.dim()))


def axis_classes(
    classes: Tensor, labels: Labels, relevant: Mapping[int, Any]
) -> tuple[int, list[int]] | None:
    """The axis along which the channels of a tensor lie, and the class at each place of it.

    Args:
        classes: of all atoms.
        labels: of the tensor.
        relevant: the classes that may go.

    Returns:
        ``None`` where none of these lies in the tensor, or not along one axis.
    """
    base = class_base(classes, labels)
    if not any(c in relevant for c in base.unique().tolist()):
        return None
    axes = [axis for axis, size in enumerate(base.shape) if size > 1]
    if len(axes) != 1:
        return None
    # places without a channel have no class of their own
    real = torch.where(labels.base != 0, classes[labels.base], -1)
    others = [i for i in range(real.dim()) if i != axes[0]]
    vector = real.amax(others) if others else real
    return axes[0], vector.tolist()

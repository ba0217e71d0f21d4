"""Coupled channels: which tensors lose what when a channel goes, from Torch-Pruning's graph.

A ``SlicingPlan`` is made once per model. Removing channels then means: collect, per module and
side, the indices that go, over all groups, and slice each module once. The indices are those of the
unpruned model, so the order of groups does not matter, also where channels are concatenated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from autocompress.model.tracing_stubs import (
    RECURRENT,
    FinalStates,
    inner_width,
    is_attention,
    stubbed,
    windowed,
)
from autocompress.policy.inventory import ChannelGroup
from autocompress.task.calling import call, call_flat

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Member:
    """One side of one module in a group.

    Args:
        module: dotted name of the module.
        side: ``out``, ``in``, ``both`` where they are the same (norms, depthwise), or ``heads``:
            inner channels of an attention, which nothing outside sees.
        index: per channel of the group, the module's indices that go with it.
    """

    module: str
    side: str
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SlicingPlan:
    """Members of every group.

    Args:
        members: group name to its members.
        units: group name to the sets of channels that can only go together; all of one size.
        skipped: name of the first producer of a group that was left out, and why.
    """

    members: Mapping[str, tuple[Member, ...]]
    units: Mapping[str, tuple[tuple[int, ...], ...]]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def removals(self, gone: Mapping[str, Sequence[int]]) -> dict[tuple[str, str], list[int]]:
        """Per module and side, the sorted indices to remove.

        Args:
            gone: group name to the channels that go.
        """
        collected: dict[tuple[str, str], set[int]] = {}
        for group, channels in gone.items():
            for member in self.members[group]:
                into = collected.setdefault((member.module, member.side), set())
                for channel in channels:
                    into.update(member.index[channel])
        return {key: sorted(indices) for key, indices in collected.items() if indices}


def channel_groups(model: nn.Module, example: Any) -> tuple[tuple[ChannelGroup, ...], SlicingPlan]:
    """Find the coupled channel groups of a model.

    Args:
        model: in eval mode; not changed.
        example: one batch of inputs, built as the model takes them.

    Returns:
        The groups in network order, and how to slice them. Groups that hold the model's outputs,
        raw parameters, or sizes that do not fit together (zero-padded shortcuts) are left out.

    References:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
    """
    import torch_pruning as tp

    names = {module: name for name, module in model.named_modules()}
    with torch.enable_grad(), _all_gradients(model), stubbed(model) as pruners:
        graph = tp.DependencyGraph()
        graph.build_dependency(
            model,
            example_inputs=example,
            forward_fn=call_flat,
            customized_pruners=pruners,
            unwrapped_parameters=None,
            ignored_layers=[],
            ignored_params=[],
            verbose=False,
        )
    order = {name: i for i, name in enumerate(_run_order(model, example, names))}
    finder = _Finder(graph, names, order)
    groups: list[ChannelGroup] = []
    members: dict[str, tuple[Member, ...]] = {}
    units: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name in sorted(order, key=order.__getitem__):
        if name in finder.seen:
            continue
        module = finder.modules[name]
        found = _heads(name, module) if is_attention(module) else finder.group(name)
        if found is not None:
            group, plan, sets = found
            groups.append(group)
            members[group.name] = plan
            units[group.name] = sets
    return tuple(groups), SlicingPlan(members, units, finder.skipped)


class _Finder:
    """Reads groups off a dependency graph."""

    def __init__(self, graph: Any, names: Mapping[nn.Module, str], order: Mapping[str, int]):
        self.graph = graph
        self.names = names
        self.modules = {name: module for module, name in names.items()}
        self.order = order
        self.seen: set[str] = set()
        self.skipped: dict[str, str] = {}

    def group(self, name: str) -> tuple[ChannelGroup, tuple[Member, ...], Any] | None:
        """The group whose first producer is this module; ``None`` where nothing can be pruned."""
        module = self.modules[name]
        handler = self.graph.get_pruner_of_module(module)
        if handler is None or _depthwise(module) or module not in self.graph.module2node:
            return None
        channels = self.graph.get_out_channels(module)
        if channels is None or channels < 2:
            return None
        try:
            raw = self.graph.get_pruning_group(
                module, handler.prune_out_channels, list(range(channels))
            )
        except (ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            self.skipped[name] = f"its dependencies cannot be traced ({error})"
            return None
        items = [
            (dep.target, dep.handler, list(zip(idxs, roots, strict=True)))
            for dep, idxs, roots in ((i.dep, i.idxs, i.root_idxs) for i in raw)
        ]
        producers = self._producers(items)
        self.seen.update(producers)
        reason = self._why_not(items, channels)
        members = () if reason else self._members(items, channels)
        blocks = self._blocks(members)
        part = channels // blocks
        sets = tuple(tuple(j + k * part for k in range(blocks)) for j in range(part))
        reason = reason or self._why_not_cut(items, members, channels, sets)
        if reason:
            self.skipped[name] = reason
            return None
        consumers = self._consumers(members)
        spans = tuple(
            (m.module, len(m.index[0]))
            for m in members
            if (m.side == "in" and m.module in consumers)
            or (m.side == "both" and _depthwise(self.modules[m.module]))
        )
        residual = any(_adds(target) for target, _, _ in items)
        group = ChannelGroup(name, tuple(producers), consumers, channels, blocks, residual, spans)
        return group, members, sets

    def _consumers(self, members: Iterable[Member]) -> tuple[str, ...]:
        found = {m.module for m in members if m.side == "in" and self._is_layer(m.module)}
        return tuple(sorted(found, key=self.order.__getitem__))

    def _is_layer(self, name: str) -> bool:
        return isinstance(self.modules[name], (*_LAYERS, *RECURRENT, nn.MultiheadAttention))

    def _producers(self, items: list[Any]) -> list[str]:
        found = set()
        for target, handler, _ in items:
            module = target.module
            if (
                module in self.names
                and isinstance(module, (*_LAYERS, *RECURRENT))
                and not _depthwise(module)
                and self._side(module, handler) == "out"
            ):
                found.add(self.names[module])
        return sorted(found, key=lambda n: self.order.get(n, 1 << 30))

    def _side(self, module: nn.Module, handler: Any) -> str:
        pruner = self.graph.get_pruner_of_module(module)
        if pruner.prune_out_channels == pruner.prune_in_channels or _depthwise(module):
            return "both"
        return "out" if handler == pruner.prune_out_channels else "in"

    def _why_not(self, items: list[Any], channels: int) -> str:
        """A reason to leave a group out, or an empty text."""
        for target, handler, pairs in items:
            module = target.module
            if isinstance(module, nn.Parameter):
                return "a raw parameter holds these channels"
            if _joins_others(target):
                return "they are concatenated behind something that no layer puts out"
            if module not in self.names:
                continue
            if isinstance(module, nn.Embedding) or is_attention(module) or windowed(module):
                return f"{self.names[module]} fixes the width of these channels"
            if not isinstance(module, (*_LAYERS, *RECURRENT)):
                continue
            if isinstance(module, RECURRENT) and module.proj_size:
                return f"{self.names[module]} projects its states: its sizes stay"
            size = (
                self.graph.get_out_channels(module)
                if self._side(module, handler) != "in"
                else self.graph.get_in_channels(module)
            )
            if any(index >= size for index, _ in pairs):
                return "the sizes along these channels do not fit together"
            if self._side(module, handler) == "out" and len(pairs) != size:
                return "a layer makes these channels only in part"
            if {root for _, root in pairs} != set(range(channels)):
                return "not every channel reaches every coupled layer"
        return ""

    def _why_not_cut(
        self,
        items: list[Any],
        members: Sequence[Member],
        channels: int,
        sets: Sequence[tuple[int, ...]],
    ) -> str:
        """A reason to leave out a group because of how its channels are read, or an empty text."""
        reason = ""
        if any(_final_states(target) for target, _, _ in items):
            reason = self._why_not_states(members, channels)
        if not reason and not self._consumers(members):
            reason = "these are the model's outputs"
        blocks = self._blocks(members)
        if not reason and (channels % blocks or channels // blocks < 2):
            reason = f"{channels} channels cannot be thinned in {blocks} groups"
        return reason or self._why_not_alike(members, sets)

    def _why_not_states(self, members: Iterable[Member], channels: int) -> str:
        """A reason to leave out a group that is read as final states, or an empty text.

        The graph does not know how states of several layers and directions are laid side by side;
        what is accepted repeats the outputs' order of units.
        """
        for member in members:
            if member.side != "in":
                continue
            size = self.graph.get_in_channels(self.modules[member.module])
            if any(member.index[c] != tuple(range(c, size, channels)) for c in range(channels)):
                return f"{member.module} reads final states in an order that cannot be followed"
        return ""

    def _why_not_alike(self, members: Iterable[Member], sets: Iterable[tuple[int, ...]]) -> str:
        """A reason to leave out channels that are not all read alike, or an empty text.

        Behind a concatenation the groups of a convolution or norm need not all hold channels of
        each producer.
        """
        for member in members:
            module = self.modules[member.module]
            if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
                return f"{member.module} is a transposed convolution with groups"
            parts = _parts(module, member.side)
            for channels in sets if parts > 1 else ():
                size = self.graph.get_in_channels(module) // parts
                gone = [divmod(i, size) for c in channels for i in member.index[c]]
                places = [sorted(p for own, p in gone if own == k) for k in range(parts)]
                # of a convolution the same places of each go: its weight holds them only once
                lost = [len(p) if isinstance(module, nn.GroupNorm) else p for p in places]
                if any(p != lost[0] for p in lost):
                    return f"the groups of {member.module} would not lose the same channels"
        return ""

    def _members(self, items: list[Any], channels: int) -> tuple[Member, ...]:
        collected: dict[tuple[str, str], list[set[int]]] = {}
        for target, handler, pairs in items:
            if target.module not in self.names:
                continue
            key = (self.names[target.module], self._side(target.module, handler))
            index = collected.setdefault(key, [set() for _ in range(channels)])
            for own, root in pairs:
                index[root].add(own)
        return tuple(
            Member(module, side, tuple(tuple(sorted(s)) for s in index))
            for (module, side), index in collected.items()
        )

    def _blocks(self, members: Iterable[Member]) -> int:
        """How many equal blocks must be thinned alike: groups, and directions of recurrence."""
        blocks = 1
        for member in members:
            module = self.modules[member.module]
            count = 1
            if isinstance(module, nn.modules.conv._ConvNd) and not _depthwise(module):
                count = module.groups
            elif isinstance(module, nn.GroupNorm):
                count = module.num_groups
            elif isinstance(module, RECURRENT) and member.side == "out":
                count = 1 + module.bidirectional
            blocks = math.lcm(blocks, count)
        return blocks


def _heads(
    name: str, module: Any
) -> tuple[ChannelGroup, tuple[Member, ...], tuple[tuple[int, ...], ...]] | None:
    """The heads of an attention as a group of their own."""
    heads = int(module.num_heads)
    if isinstance(module, nn.MultiheadAttention):
        plain = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
        channels = module.embed_dim
    else:
        plain, channels = True, inner_width(module)
    if heads < 2 or not plain:
        return None
    width = channels // heads
    member = Member(name, "heads", tuple((channel,) for channel in range(channels)))
    units = tuple(tuple(range(h * width, (h + 1) * width)) for h in range(heads))
    return ChannelGroup(name, (name,), (), channels, unit=width), (member,), units


@contextmanager
def _all_gradients(model: nn.Module) -> Iterator[None]:
    """Ask for every parameter's gradient: the graph is read off autograd's."""
    before = [p.requires_grad for p in model.parameters()]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, needs in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(needs)


def _final_states(node: Any) -> bool:
    """Whether a node of the graph gives a recurrent layer's final states."""
    return type(node.grad_fn).__name__ == f"{FinalStates.__name__}Backward"


def _adds(node: Any) -> bool:
    """Whether a node of the graph adds two streams."""
    gradient = type(node.grad_fn).__name__ if node.grad_fn is not None else ""
    return gradient.startswith("Add") and "Addmm" not in gradient and len(node.inputs) > 1


def _joins_others(node: Any) -> bool:
    """Whether a node concatenates layers' outputs behind, say, the image.

    The graph does not see the image, so that its indices behind it are too small.
    """
    if node.grad_fn is None or not type(node.grad_fn).__name__.startswith("Cat"):
        return False
    unseen = [before is None for before, _ in node.grad_fn.next_functions]
    return any(unseen[: len(unseen) - unseen[::-1].index(False)])


def _parts(module: nn.Module, side: str) -> int:
    """Into how many groups a module divides the channels that it reads."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, nn.modules.conv._ConvNd) and side == "in":
        return module.groups
    return 1


def _depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.modules.conv._ConvNd)
        and module.groups > 1
        and module.groups == module.out_channels == module.in_channels
    )


def _run_order(model: nn.Module, example: Any, names: Mapping[nn.Module, str]) -> list[str]:
    """Names of the leaf layers in the order in which they run first."""
    found: dict[str, None] = {}
    handles = [
        module.register_forward_hook(lambda m, *_: found.setdefault(names[m]))
        for module in names
        if isinstance(module, (*_LAYERS, *RECURRENT)) or is_attention(module)
    ]
    try:
        with torch.no_grad():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return list(found)

"""Coupled channels: which tensors lose what when a channel goes.

A ``SlicingPlan`` is made once per model. Removing channels then means: collect, per module and
side, the indices that go, over all groups, and slice each module once. The indices are those of the
unpruned model, so the order of groups does not matter, also where channels are concatenated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from autocompress.errors import explained
from autocompress.model.call_sites import code_of
from autocompress.model.channel_trace import trace_channels
from autocompress.model.cut_check import check_groups, first_samples, needed_calls
from autocompress.model.grouping import FoundGroup, Member, group_channels
from autocompress.model.sides import CallAxis, ModuleSide, Side
from autocompress.model.tracing_stubs import inner_width, is_attention, why_whole
from autocompress.model.widths import Narrowing, narrowed, narrowings
from autocompress.policy.inventory import WHOLE, ChannelGroup
from autocompress.task.choices import layers_by_choice
from autocompress.task.dynamic import Axes


@dataclass(frozen=True)
class SlicingPlan:
    """Members of every group.

    Args:
        members: group name to its members.
        units: group name to the sets of channels that can only go together; all of one size.
        skipped: name of the first producer of a group that was left out, and why; ``WHOLE`` where
            nothing can be pruned.
        producers: the same name to all layers that make these channels.
        sites: module and side of all calls that say sizes of channels.
        needed: modules and names, without counts, of those that do not follow by themselves.
        narrowings: group name to how its heads get narrower, where they can.
    """

    members: Mapping[str, tuple[Member, ...]]
    units: Mapping[str, tuple[tuple[int, ...], ...]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    producers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sites: tuple[ModuleSide, ...] = ()
    needed: frozenset[tuple[str, str]] | None = None
    narrowings: Mapping[str, Narrowing] = field(default_factory=dict)

    def removals(
        self, gone: Mapping[str, Sequence[int]], widths: Mapping[str, int] | None = None
    ) -> dict[ModuleSide, list[int]]:
        """Per module and side, the sorted indices to remove; for calls also where none go.

        Args:
            gone: group name to the channels that go.
            widths: name of another group to the channels that each of its heads keeps.
        """
        collected: dict[ModuleSide, set[int]] = {}
        for group, channels in gone.items():
            for member in self.members[group]:
                into = collected.setdefault((member.module, member.side), set())
                for channel in channels:
                    into.update(member.index[channel])
        found = {key: sorted(indices) for key, indices in collected.items() if indices}
        found = {key: [] for key in (self.sites if found else ())} | found
        found = {key: indices for key, indices in found.items() if self._applies(*key)}
        for group, width in (widths or {}).items():
            for key, indices in narrowed(self.narrowings[group], width).items():
                found[key] = sorted({*found.get(key, ()), *indices})
        return found

    def _applies(self, module: str, side: Side) -> bool:
        """Whether a side must be cut or, of a call, corrected."""
        if not isinstance(side, CallAxis) or self.needed is None:
            return True
        return (module, code_of(side.call)) in self.needed


def channel_groups(
    model: nn.Module, example: Any, axes: Axes | None = None
) -> tuple[tuple[ChannelGroup, ...], SlicingPlan]:
    """Find the coupled channel groups of a model, and try each on it.

    Args:
        model: in eval mode; not changed.
        example: one batch of inputs, built as the model takes them; unlike samples tell most.
        axes: of the inputs that may have other sizes, beside the batch.

    Returns:
        The groups in network order, and how to slice them. Groups that hold the model's outputs,
        or cannot be cut, are left out; the plan says why.
    """
    inputs = first_samples(example, 1)
    try:
        groups, plan = _untried(model, inputs)
    # whatever a model does that cannot be followed, the rest of compression works without groups
    except Exception as error:
        reason = f"its channels cannot be followed: {explained(error)}"
        return (), SlicingPlan({}, {}, {WHOLE: reason}, {WHOLE: ()})
    groups, plan = _without(groups, plan, _by_choice(model, example, groups), None)
    failed, needed = check_groups(model, example, plan, axes)
    groups, plan = _without(groups, plan, failed, needed)
    found = narrowings(model, example, plan)
    groups = tuple(
        replace(g, narrower=g.channels // found[g.name].width) if g.name in found else g
        for g in groups
    )
    return groups, replace(plan, narrowings=found)


def _by_choice(model: nn.Module, example: Any, groups: tuple[ChannelGroup, ...]) -> dict[str, str]:
    """All groups, where a layer that was not followed may read them on other values."""
    chosen = layers_by_choice(model, example) if groups else []
    if not chosen:
        return {}
    reason = (
        f"the values of the input choose whether {', '.join(chosen[:3])} runs: what it would read "
        "cannot be followed"
    )
    return {group.name: reason for group in groups}


def slicing_plan(model: nn.Module, example: Any, groups: Collection[str]) -> SlicingPlan:
    """How to slice the groups of a model's inventory, without sorting out any of them.

    Args:
        model: in eval mode; not changed.
        example: one batched input, or a tuple of them.
        groups: names of the inventory's groups.
    """
    if not groups:
        return SlicingPlan({}, {})
    inputs = first_samples(example, 1)
    found, plan = _untried(model, inputs)
    others = {group.name: "" for group in found if group.name not in groups}
    _, plan = _without(found, plan, others, None)
    narrow = narrowings(model, example, plan)
    return replace(plan, needed=needed_calls(model, example, plan), narrowings=narrow)


def _untried(model: nn.Module, inputs: Any) -> tuple[tuple[ChannelGroup, ...], SlicingPlan]:
    trace = trace_channels(model, inputs)
    grouped = group_channels(trace)
    heads: dict[str, FoundGroup] = {}
    whole: dict[str, str] = {}
    for name in trace.order:
        if is_attention(module := model.get_submodule(name)):
            whole[name] = "it has one head" if module.num_heads == 1 else why_whole(module)
            if not whole[name]:
                heads[name] = _heads(name, module)
    whole = {name: reason for name, reason in whole.items() if reason}
    both = grouped.groups | heads
    names = [name for name in trace.order if name in both]
    plan = SlicingPlan(
        {name: both[name][1] for name in names},
        {name: both[name][2] for name in names},
        grouped.skipped | whole,
        grouped.producers | {name: (name,) for name in whole},
        grouped.sites,
    )
    return tuple(both[name][0] for name in names), plan


def _without(
    groups: tuple[ChannelGroup, ...],
    plan: SlicingPlan,
    failed: Mapping[str, str],
    needed: frozenset[tuple[str, str]] | None,
) -> tuple[tuple[ChannelGroup, ...], SlicingPlan]:
    """Leave groups out for the reasons given."""
    kept = tuple(group for group in groups if group.name not in failed)
    names = {group.name for group in kept}
    return kept, SlicingPlan(
        {name: members for name, members in plan.members.items() if name in names},
        {name: units for name, units in plan.units.items() if name in names},
        {**plan.skipped, **failed},
        {
            **plan.producers,
            **{name: (name,) for name in failed},
            **{g.name: g.producers for g in groups if g.name in failed},
        },
        plan.sites,
        needed,
    )


def _heads(name: str, module: Any) -> FoundGroup:
    """The heads of an attention as a group of their own."""
    heads = int(module.num_heads)
    multihead = isinstance(module, nn.MultiheadAttention)
    channels = module.embed_dim if multihead else inner_width(module)
    width = channels // heads
    member = Member(name, "heads", tuple((channel,) for channel in range(channels)))
    units = tuple(tuple(range(h * width, (h + 1) * width)) for h in range(heads))
    return ChannelGroup(name, (name,), (), channels, unit=width), (member,), units

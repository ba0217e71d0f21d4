"""Parameters that no layer holds (norms, scales, tables of positions), and what they go with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from torch import nn

from autocompress.model.grouping import Member
from autocompress.model.groups import SlicingPlan
from autocompress.model.sides import CallAxis, OwnAxis
from autocompress.model.specs import counted_parameters
from autocompress.policy.inventory import Block, Inventory


def with_others(inventory: Inventory, model: nn.Module, plan: SlicingPlan) -> Inventory:
    """The inventory, told of the parameters that its layers do not hold.

    What lies in a block goes with the block; what is sliced along one axis goes with the outputs of
    a layer that loses its own in the same proportion; the rest counts as what stays, also what is
    sliced along two axes.

    Args:
        inventory: of the model.
        model: not changed.
        plan: how its groups are cut.
    """
    listed = {
        id(p) for x in inventory.layers for p in counted_parameters(model.get_submodule(x.name))
    }
    inside = _blocks(inventory, model)
    along = _slices(inventory, model, plan, listed)
    stays = 0
    with_block, with_channel = Counter[str](), defaultdict[str, Fraction](Fraction)
    for parameter in model.parameters():
        if id(parameter) in listed:
            continue
        left, block = parameter.numel(), inside.get(id(parameter))
        for each, hosts in along.get(id(parameter), ()):
            if host := hosts.get(block.name if block else None):
                name, times = host
                with_channel[name] += each * times
                left -= int(each * times * inventory.by_name[name].out_channels)
        if block is None:
            stays += left
        else:
            with_block[block.name] += left
    layers = tuple(
        replace(x, beside=with_block[x.name], beside_each=_plain(with_channel[x.name]))
        for x in inventory.layers
    )
    return replace(inventory, layers=layers, other_params=stays)


def _plain(count: Fraction) -> float:
    """A whole number where it is one; what goes with a head goes with each channel in part."""
    return int(count) if count.denominator == 1 else float(count)


def _blocks(inventory: Inventory, model: nn.Module) -> dict[int, Block]:
    """Id of a parameter to the block that it goes with; of none where it is also held elsewhere."""
    of = {module: block for block in inventory.blocks for module in block.modules}
    found: dict[int, Block | None] = {}
    for name, module in model.named_modules():
        block = of.get(name) or of.get(name.rpartition(".")[0])
        if block is not None:
            of[name] = block
        for parameter in module.parameters(recurse=False):
            same = found.get(id(parameter), block) is block
            found[id(parameter)] = block if same else None
    return {key: block for key, block in found.items() if block is not None}


_Hosts = Mapping[str | None, tuple[str, Fraction]]
"""Name of a block, or none, to the first layer in it that loses outputs in some proportion, and how
many indices go with each of them."""


def _slices(
    inventory: Inventory, model: nn.Module, plan: SlicingPlan, listed: Collection[int]
) -> dict[int, list[tuple[int, _Hosts]]]:
    """Id of a parameter to those who slice it: values at each index, and with whom they go.

    Without those of layers, and those that are sliced along several axes.
    """
    found: dict[int, list[tuple[int, _Hosts]]] = {}
    axes: dict[int, set[int]] = {}
    for group in inventory.channel_groups:
        members, units = plan.members[group.name], plan.units[group.name]
        lost = {m.module: _lost(m, units) for m in members if m.side == "out"}
        whole = {n: o for n, o in lost.items() if sum(o) == inventory.by_name[n].out_channels}
        known: dict[tuple[int, ...], _Hosts] = {}
        for member in members:
            held = [(p, axis) for p, axis in _held(model, member) if id(p) not in listed]
            if not held:
                continue
            own = _lost(member, units)
            if own not in known:
                known[own] = _hosts(own, whole, inventory)
            for parameter, axis in held:
                each = parameter.numel() // parameter.shape[axis]
                found.setdefault(id(parameter), []).append((each, known[own]))
                axes.setdefault(id(parameter), set()).add(axis)
    return {key: found[key] for key, along in axes.items() if len(along) == 1}


def _hosts(
    own: tuple[int, ...], lost: Mapping[str, tuple[int, ...]], inventory: Inventory
) -> _Hosts:
    found: dict[str | None, tuple[str, Fraction]] = {}
    for name, outputs in lost.items():
        times = Fraction(own[0], outputs[0] or 1)
        if outputs[0] and all(times * n == m for n, m in zip(outputs, own, strict=True)):
            block = inventory.block_of.get(name)
            found.setdefault(block.name if block else None, (name, times))
    return found


def _lost(member: Member, units: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """How many indices go with each of the sets of channels that only go together."""
    return tuple(sum(len(member.index[channel]) for channel in unit) for unit in units)


def _held(model: nn.Module, member: Member) -> Iterator[tuple[nn.Parameter, int]]:
    """Parameters that a member slices, and along which axis; of a layer they do not matter here."""
    if isinstance(member.side, CallAxis) or member.side == "heads":
        return
    module = model.get_submodule(member.module)
    if isinstance(member.side, OwnAxis):
        held = [(getattr(module, member.side.attribute), member.side.axis)]
    else:
        held = [(parameter, 0) for parameter in module.parameters(recurse=False)]
    yield from ((tensor, axis) for tensor, axis in held if isinstance(tensor, nn.Parameter))

"""Parameters that no layer holds (norms, scales, tables of positions), and what they go with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

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
    along = _slices(inventory, model, plan)
    stays = 0
    with_block, with_channel = Counter[str](), Counter[str]()
    for parameter in model.parameters():
        if id(parameter) in listed:
            continue
        left, block = parameter.numel(), inside.get(id(parameter))
        for hosts in along.get(id(parameter), ()):
            there = [name for name in hosts if inventory.block_of.get(name) is block]
            if there:
                with_channel[there[0]] += hosts[there[0]]
                left -= hosts[there[0]] * inventory.by_name[there[0]].out_channels
        if block is None:
            stays += left
        else:
            with_block[block.name] += left
    layers = tuple(
        replace(x, beside=with_block[x.name], beside_each=with_channel[x.name])
        for x in inventory.layers
    )
    return replace(inventory, layers=layers, other_params=stays)


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


def _slices(
    inventory: Inventory, model: nn.Module, plan: SlicingPlan
) -> dict[int, list[dict[str, int]]]:
    """Id of a parameter to those who slice it: each a layer that loses as many outputs in the same
    proportion, and how many values go with one of these.

    Without those that are sliced along several axes.
    """
    found: dict[int, list[dict[str, int]]] = {}
    axes: dict[int, set[int]] = {}
    for group in inventory.channel_groups:
        members, units = plan.members[group.name], plan.units[group.name]
        lost = {m.module: _lost(m, units) for m in members if m.side == "out"}
        for member in members:
            own = _lost(member, units)
            hosts = {
                name: own[0] // outputs[0]
                for name, outputs in lost.items()
                if outputs[0]
                and all(own[0] // outputs[0] * n == m for n, m in zip(outputs, own, strict=True))
                and sum(outputs) == inventory.by_name[name].out_channels
            }
            for parameter, axis in _held(model, member):
                each = parameter.numel() // parameter.shape[axis]
                told = {name: each * times for name, times in hosts.items()}
                found.setdefault(id(parameter), []).append(told)
                axes.setdefault(id(parameter), set()).add(axis)
    return {key: found[key] for key, along in axes.items() if len(along) == 1}


def _lost(member: Member, units: Sequence[Sequence[int]]) -> list[int]:
    """How many indices go with each of the sets of channels that only go together."""
    return [sum(len(member.index[channel]) for channel in unit) for unit in units]


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

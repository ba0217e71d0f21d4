"""In which order the channels of every group go, so that widths are nested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.model.attention import projection_of
from autocompress.model.groups import SlicingPlan
from autocompress.policy.inventory import ChannelGroup
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Split
from autocompress.task.task import Loss
from autocompress.techniques.importance import (
    Consumer,
    l1_scores,
    obs_order,
    own_scores,
    taylor_scores,
)
from autocompress.techniques.moments import Moments, matrix_layer


def removal_orders(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    plan: SlicingPlan,
    settings: CompressionSettings,
    moments: Mapping[str, Moments],
    sample: Split | None,
    progress: Callable[[str, float], None],
    loss: Loss | None = None,
) -> dict[str, list[int]]:
    """Rank the channels of every group.

    Args:
        model: uncompressed.
        groups: those that may be pruned.
        plan: how they are cut.
        settings: the kind of importance.
        moments: of layers' inputs.
        sample: inputs, and targets for ``taylor``; importances of weights and moments need none.
        progress: told the group at work, and the fraction that is done.
        loss: from outputs and targets, for ``taylor``; ``None`` is that of classes.

    Returns:
        Group name to all its channels, the first to go first.

    Raises:
        InputError: an importance that needs a sample, and there is none.
    """
    producers = {name: size for g in groups for name, size in _producers(plan, g.name).items()}
    taylor: dict[str, Tensor] = {}
    if sample is None and settings.importance not in ("l1", "obs"):
        raise InputError(
            f"The importance {settings.importance!r} looks at samples, but only sums over them are "
            "at hand. Set `settings.importance` to `obs` or `l1`."
        )
    if settings.importance == "taylor":
        assert sample is not None
        taylor = taylor_scores(model, {n: (n,) for n in producers}, producers, sample, loss)
    orders = {}
    for done, group in enumerate(groups):
        progress(group.name, done / max(1, len(groups)))
        units = plan.units[group.name]
        order = None
        if settings.importance == "obs":
            order = _by_error(model, group.name, plan, settings, moments)
        if order is None:
            scores = taylor or _scores(settings.importance, model, plan, group, sample)
            order = torch.argsort(_joint(plan, group.name, scores)).tolist()
        orders[group.name] = [channel for unit in order for channel in units[unit]]
    return orders


def _scores(
    importance: str, model: nn.Module, plan: SlicingPlan, group: ChannelGroup, sample: Split | None
) -> dict[str, Tensor]:
    """Producer to the importance of its channels: by the user's own function, or by weights."""
    producers = _producers(plan, group.name)
    if ":" in importance:
        assert sample is not None
        own = own_scores(importance, model, group, sample)
        return dict.fromkeys(producers, own)
    return {name: l1_scores(model, (name,), size) for name, size in producers.items()}


def _producers(plan: SlicingPlan, group: str) -> dict[str, int]:
    """Layers that make a group's channels, with the number that each makes."""
    return {
        member.module: sum(map(len, member.index))
        for member in plan.members[group]
        if member.side in ("out", "heads")
    }


def _joint(plan: SlicingPlan, group: str, scores: Mapping[str, Tensor]) -> Tensor:
    """Score of every unit: that of all channels, of all layers, that go with it."""
    made = [m for m in plan.members[group] if m.side in ("out", "heads")]
    return torch.stack(
        [
            sum(
                (scores[m.module][list(m.index[c])].sum() for m in made for c in unit),
                torch.zeros(()),
            )
            for unit in plan.units[group]
        ]
    )


def _by_error(
    model: nn.Module,
    group: str,
    plan: SlicingPlan,
    settings: CompressionSettings,
    moments: Mapping[str, Moments],
) -> list[int] | None:
    """Greedy order by the consumers' error; ``None`` where no consumer can be solved."""
    units = plan.units[group]
    consumers = []
    for member in plan.members[group]:
        if member.side not in ("in", "heads"):
            continue
        heads = member.side == "heads"
        reader = projection_of(model, member.module) if heads else member.module
        found = moments.get(reader)
        if found is None or len(found.second) > 1:
            continue
        layer = matrix_layer(model, reader)
        weight = layer.weight.detach()
        mean = None if layer.bias is None else found.second[0, -1, :-1]
        area = weight[0, 0].numel()
        read = [sorted(i for c in unit for i in member.index[c]) for unit in units]
        blocks = torch.tensor([[i * area + k for i in own for k in range(area)] for own in read])
        second = found.second[0, :-1, :-1]
        consumers.append(Consumer(weight.flatten(1), second, blocks, settings.ridge, mean=mean))
    return obs_order(consumers, [(i,) for i in range(len(units))]) if consumers else None

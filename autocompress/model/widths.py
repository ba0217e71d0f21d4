"""Heads that can be made narrower: found among the groups of heads, and tried on the model.

Where nothing but a product stands between two projections, a head's channels can be mixed with each
other at will: what mixes queries is undone in the keys, what mixes values in the output projection.
So a head can be turned until its last channels matter least, and then lose these.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.model.channel_trace import ChannelTrace, trace_channels
from autocompress.model.cut_check import CutCheck, first_samples
from autocompress.model.follow import Follower
from autocompress.model.grouping import Member, call_side
from autocompress.model.labels import Labels
from autocompress.model.sides import ModuleSide
from autocompress.model.slicing import remove
from autocompress.model.tracing_stubs import is_attention

if TYPE_CHECKING:
    from autocompress.model.groups import SlicingPlan

_POINTWISE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class WeightRows:
    """Some rows of a weight and of its bias.

    Args:
        module: that holds them.
        rows: places along the first axis.
        prefix: of the names of weight and bias.
    """

    module: str
    rows: tuple[int, ...]
    prefix: str = ""

    def held(self, model: nn.Module) -> Iterator[Tensor]:
        """The weight, and the bias if there is one."""
        module = model.get_submodule(self.module)
        for name in ("weight", "bias"):
            found = getattr(module, self.prefix + name)
            if found is not None:
                yield found

    def read(self, model: nn.Module) -> Tensor:
        """``(rows, inputs + 1)``: the weights, and the bias behind them (zero if there is none)."""
        weight, *bias = (t[list(self.rows)].flatten(1) for t in self._two_axes(model))
        return torch.cat([weight, *(bias or [torch.zeros_like(weight[:, :1])])], 1).double()

    def _two_axes(self, model: nn.Module) -> Iterator[Tensor]:
        for tensor in self.held(model):
            yield tensor if tensor.dim() > 1 else tensor[:, None]

    @torch.no_grad()
    def mix(self, model: nn.Module, mixing: Tensor) -> None:
        """Put ``mixing @ rows`` in the place of the rows."""
        for tensor in self.held(model):
            old = tensor[list(self.rows)]
            mixed = mixing @ old.reshape(len(old), -1).to(mixing)
            tensor[list(self.rows)] = mixed.view(old.shape).to(old)


@dataclass(frozen=True)
class Head:
    """One head.

    Args:
        query, key, value: what makes it.
        reader: name of the layer that reads it.
        columns: its inputs of that layer.
    """

    query: WeightRows
    key: WeightRows
    value: WeightRows
    reader: str
    columns: tuple[int, ...]

    def read(self, model: nn.Module) -> Tensor:
        """``(outputs, width)``: how the head is read."""
        weight = model.get_submodule(self.reader).get_parameter("weight")
        return weight[:, list(self.columns)].flatten(1).double()

    @torch.no_grad()
    def mix_reader(self, model: nn.Module, mixing: Tensor) -> None:
        """Put ``columns @ mixing.T`` in the place of the columns."""
        weight = model.get_submodule(self.reader).get_parameter("weight")
        old = weight[:, list(self.columns)]
        weight[:, list(self.columns)] = (
            (old.flatten(1).to(mixing) @ mixing.T).view(old.shape).to(old)
        )


@dataclass(frozen=True)
class Narrowing:
    """How the heads of one group get narrower.

    Args:
        heads: all of them.
        width: channels of a head.
        members: as those of a group; ``index[j]`` goes with the j-th channel of every head.
        follows: whether the model scales the scores by the width that it finds.
    """

    heads: tuple[Head, ...]
    width: int
    members: tuple[Member, ...]
    follows: bool = False

    def keep_scale(self, model: nn.Module, width: int) -> None:
        """Let scores of heads so wide be as large as before."""
        if self.follows:
            factor = (width / self.width) ** 0.5
            for head in self.heads:
                head.query.mix(model, factor * torch.eye(self.width, dtype=torch.float64))


class WidthFollower(Follower):
    """Follows the channels of each head through products, to what reads them."""

    def _products(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        left, right = [t for t in args if isinstance(t, Tensor)][-2:]
        found: Labels | None = None
        if left.dim() > 1 and right.dim() > 1:
            for tensor, summed, shape in (
                (left, -1, (*left.shape[:-1], 1)),
                (right, -2, (*right.shape[:-2], 1, right.shape[-1])),
            ):
                labels = self.get(tensor)
                if labels is not None and labels.base.shape[summed] == 1:
                    found = Labels(shape, labels.base)
        self.put(out, None if found is None else Labels(tuple(out.shape), found.base))
        return True


def narrowings(model: nn.Module, inputs: Any, plan: SlicingPlan) -> dict[str, Narrowing]:
    """The groups whose heads can be made narrower, all by the same number of channels.

    Args:
        model: in eval mode; not changed.
        inputs: a few samples.
        plan: of groups some of which are heads.
    """
    found = {name: rows for name in plan.units if (rows := _rows(model, name, plan)) is not None}
    if not found:
        return {}
    trace = trace_channels(model, first_samples(inputs, 1), WidthFollower)
    made = {name: _narrowing(trace, plan.members[name], *own) for name, own in found.items()}
    return _WidthCheck(CutCheck(model, inputs, plan)).passed(made)


Made = tuple[list[list[WeightRows]], str, list[tuple[int, ...]]]
"""Per head three sets of rows; the layer that reads them, and which of its inputs."""


def _rows(model: nn.Module, group: str, plan: SlicingPlan) -> Made | None:
    """What makes and what reads every head; ``None`` where it is no attention of this kind."""
    members, units = plan.members[group], plan.units[group]
    width = len(units[0])
    if width < 2:
        return None
    if is_attention(model.get_submodule(group)):
        window = hasattr(model.get_submodule(group), "qkv")
        own, prefix = (f"{group}.qkv", "") if window else (group, "in_proj_")
        size = width * len(units)
        stacked = [
            [WeightRows(own, tuple(c + part * size for c in unit), prefix) for part in range(3)]
            for unit in units
        ]
        return stacked, f"{group}.{'proj' if window else 'out_proj'}", [tuple(u) for u in units]
    readers = [m for m in members if m.side == "in"]
    makers = {m.module: m for m in members if m.side == "out"}
    layers = [model.get_submodule(name) for name in (*makers, *(m.module for m in readers))]
    if len(readers) != 1 or not all(map(_pointwise, layers)):
        return None
    three: list[list[WeightRows]] = []
    columns: list[tuple[int, ...]] = []
    for unit in units:
        read = sorted(i for c in unit for i in readers[0].index[c])
        made = [
            (name, i)
            for name, maker in makers.items()
            for i in sorted(j for c in unit for j in maker.index[c])
        ]
        parts = [made[i : i + len(read)] for i in range(0, len(made), len(read))] if read else []
        if len(made) != 3 * len(read) or any(len({n for n, _ in part}) > 1 for part in parts):
            return None
        three.append([WeightRows(part[0][0], tuple(i for _, i in part)) for part in parts])
        columns.append(tuple(read))
    return three, readers[0].module, columns


def _pointwise(layer: Any) -> bool:
    """Whether a layer multiplies every place by one matrix."""
    if type(layer) not in _POINTWISE:
        return False
    kernel = set(getattr(layer, "kernel_size", (1,)))
    return kernel == {1} and getattr(layer, "groups", 1) == 1


def _narrowing(
    trace: ChannelTrace,
    members: Sequence[Member],
    three: list[list[WeightRows]],
    reader: str,
    columns: list[tuple[int, ...]],
) -> Narrowing:
    """With values last, as nearly everyone writes it."""
    heads = tuple(
        Head(parts[0], parts[1], parts[2], reader, read)
        for parts, read in zip(three, columns, strict=True)
    )
    width = len(columns[0])
    inner = [m.module for m in members if m.side == "heads"]
    if inner:
        places = [tuple(read[j] for read in columns) for j in range(width)]
        return Narrowing(heads, width, (Member(inner[0], "heads", tuple(places)),))
    made: dict[ModuleSide, list[list[int]]] = {
        (reader, "in"): [[r[j] for r in columns] for j in range(width)]
    }
    for parts in three:
        for rows in parts:
            into = made.setdefault((rows.module, "out"), [[] for _ in range(width)])
            for j, row in enumerate(rows.rows):
                into[j].append(row)
    atoms = {axis.module: axis.atoms for axis in trace.axes if axis.side == "out"}
    gone = [
        torch.cat([atoms[module][own[j]] for (module, side), own in made.items() if side == "out"])
        for j in range(width)
    ]
    for site in trace.sites:
        for key, labels in site.tensors:
            found = [_block(labels.base, own) for own in gone]
            axes = {axis for axis, _ in found if axis >= 0}
            if len(axes) == 1:
                place = call_side(site, key, axes.pop(), labels)
                made[place] = [own for _, own in found]
    return Narrowing(
        heads,
        width,
        tuple(
            Member(module, side, tuple(tuple(sorted(own)) for own in index))
            for (module, side), index in made.items()
        ),
    )


def _block(base: Tensor, gone: Tensor) -> tuple[int, list[int]]:
    """The axis along which elements go, and its places; -1 where they are not whole places."""
    mask = torch.isin(base, gone)
    for axis, size in enumerate(mask.shape):
        others = [i for i in range(mask.dim()) if i != axis]
        along = mask.amax(others, keepdim=True) if others else mask
        if size > 1 and bool(mask.any()) and bool((along == mask).all()):
            return axis, along.flatten().nonzero().flatten().tolist()
    return -1, []


class _WidthCheck:
    """Tries narrowings on a copy: mixed heads must answer as before, narrower ones as masked."""

    def __init__(self, check: CutCheck) -> None:
        self._check = check

    def passed(self, made: Mapping[str, Narrowing]) -> dict[str, Narrowing]:
        """Those that hold, each in the way in which it does."""
        for way in self._ways(list(made.values())):
            if self._holds(way):
                return dict(zip(made, way, strict=True))
        found = {}
        for name, narrowing in made.items() if len(made) > 1 else ():
            alone = next((w[0] for w in self._ways([narrowing]) if self._holds(w)), None)
            if alone is not None:
                found[name] = alone
        return found

    def _ways(self, made: list[Narrowing]) -> Iterator[list[Narrowing]]:
        """Which of the three are the values, and whether scores are scaled by the width."""
        for last in (2, 1, 0):
            for follows in (False, True):
                yield [
                    replace(n, heads=tuple(_with_values(h, last) for h in n.heads), follows=follows)
                    for n in made
                ]

    def _holds(self, made: Sequence[Narrowing]) -> bool:
        masked = copy.deepcopy(self._check.model)
        keep = [max(1, n.width // 2 - 1) for n in made]
        for narrowing, width in zip(made, keep, strict=True):
            cover = torch.eye(narrowing.width, dtype=torch.float64)
            cover[width:] = 0
            for head in narrowing.heads:
                for rows in (head.query, head.key, head.value):
                    rows.mix(masked, cover)
        mixed, small = copy.deepcopy(masked), copy.deepcopy(masked)
        generator = torch.Generator().manual_seed(0)
        removals: dict[ModuleSide, list[int]] = {}
        for narrowing, width in zip(made, keep, strict=True):
            _mix(mixed, narrowing, generator)
            narrowing.keep_scale(small, width)
            removals |= narrowed(narrowing, width)
        try:
            if not self._check.alike(mixed, masked):
                return False
            remove(small, removals)
            return self._check.alike(small, masked)
        except Exception:  # whatever a cut model raises, its heads stay as wide as they are
            return False


def _with_values(head: Head, which: int) -> Head:
    parts = [head.query, head.key, head.value]
    value = parts.pop(which)
    return replace(head, query=parts[0], key=parts[1], value=value)


def _mix(model: nn.Module, narrowing: Narrowing, generator: torch.Generator) -> None:
    """Mix the channels of every head at random, and undo it."""
    size = narrowing.width
    for head in narrowing.heads:
        for first, second in ((head.query.mix, head.key.mix), (head.value.mix, head.mix_reader)):
            mixing = torch.eye(size) + torch.rand(size, size, generator=generator) / size
            mixing = mixing.double()
            first(model, mixing)
            second(model, torch.linalg.inv(mixing).T)


def narrowed(narrowing: Narrowing, width: int) -> dict[ModuleSide, list[int]]:
    """Per module and side, the sorted indices that go where heads keep their first channels."""
    return {
        (member.module, member.side): sorted(i for own in member.index[width:] for i in own)
        for member in narrowing.members
    }

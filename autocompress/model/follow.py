"""Follow labels through the operators between layers, as PyTorch dispatches them.

Operators that move elements run once more, on the labels. Operators by element unite the labels
that meet. Operators that mix elements (sums, softmax, products of matrices) unite what they mix.
What reads labels in any other way holds them: these channels must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.model import operator_kinds as kinds
from autocompress.model.labels import Atoms, Labels, along, labelled
from autocompress.model.plain_operators import passing


@dataclass(frozen=True)
class Raw:
    """A parameter or buffer outside of layers.

    Args:
        places: module and attribute of each place that holds it.
        labels: one atom per element.
    """

    places: tuple[tuple[str, str], ...]
    labels: Labels


class Follower:
    """Labels of all tensors of one run of a model.

    Args:
        atoms: takes in what goes together.
        raw: parameters and buffers outside of layers, by ``id``, with the places that hold them.
        owned: names of the layers of other parameters, by ``id``.
    """

    def __init__(
        self,
        atoms: Atoms,
        raw: Mapping[int, tuple[tuple[str, str], ...]],
        owned: Mapping[int, str],
    ) -> None:
        self.atoms = atoms
        self.tangled: list[Labels] = []
        self.raw: dict[int, Raw] = {}
        self.leaked: dict[int, str] = {}
        self.met: list[tuple[Labels, Labels]] = []
        self.added: list[tuple[Tensor, Tensor]] = []
        self.mixed: list[tuple[Tensor, str]] = []
        self._raw_places = raw
        self._owned = owned
        # tensors are kept, so that none takes another's id
        self._known: dict[int, tuple[Tensor, Labels | None]] = {}

    def get(self, tensor: Tensor) -> Labels | None:
        """Labels of a tensor, ``None`` where it holds no channels."""
        key = id(tensor)
        if key in self._known:
            return self._known[key][1]
        found = None
        if key in self._owned:
            reason = f"the weight of {self._owned[key]} is used outside of it"
            self.leaked[key] = reason
            found = self.one(tensor, self.atoms.held(reason))
        elif key in self._raw_places and tensor.is_floating_point() and tensor.numel() > 1:
            base = self.atoms.new(tensor.numel()).view(tensor.shape)
            found = Labels(tuple(tensor.shape), base, loose=True)
            self.raw[key] = Raw(self._raw_places[key], found)
        self._known[key] = (tensor, found)
        return found

    def put(self, tensor: Any, labels: Labels | None) -> None:
        """Label a tensor."""
        if isinstance(tensor, Tensor):
            self._known[id(tensor)] = (tensor, labels)
            self._tangle(labels)

    def _tangle(self, labels: Labels | None) -> None:
        if labels is not None and not labels.loose and len(labels.axes) > 1:
            self.tangled.append(labels)

    @staticmethod
    def one(tensor: Tensor, atom: Tensor) -> Labels:
        """One atom for all elements."""
        return Labels(tuple(tensor.shape), atom.view([1] * tensor.dim()))

    def hold(self, labels: Labels | None, reason: str) -> None:
        """These channels must stay."""
        if labels is not None:
            self.atoms.unite(labels.base, self.atoms.held(reason))

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Label what one operator gave.

        Args:
            func: of ``torch.ops``.
            args, kwargs: what it was called with.
            out: what it gave.
        """
        name = passing(func)
        if name.endswith("_") and not name.endswith("__"):
            name = name[:-1]
        known = [labels for t in _tensors((args, kwargs)) if (labels := self.get(t)) is not None]
        if not known or name.endswith("_like") or name.startswith("new_"):
            return
        rule = self._rule(name, func)
        if rule is None or not rule(name, func, args, kwargs, out):
            self._unknown(name, known, out)

    def _rule(self, name: str, func: Any) -> Callable[..., bool] | None:
        if name in kinds.SAME:
            return self._same
        if name in kinds.RESHAPES or name in kinds.MOVES:
            return self._moves
        if name in kinds.SHUFFLES:
            return self._shuffles
        if name == "glu":
            return self._gated
        if name == "constant_pad_nd":
            return self._pads
        if name in kinds.POINTWISE or torch.Tag.pointwise in func.tags:
            return self._pointwise
        if name in kinds.MIXES:
            return self._mixes
        if name.startswith(kinds.SPATIAL):
            return self._spatial
        if name in kinds.PRODUCTS:
            return self._products
        if name == "per_channel":
            return self._per_channel
        if name in kinds.BATCH_NORMS or name in kinds.LAYER_NORMS:
            return self._norms
        return None

    def _unknown(self, name: str, known: Sequence[Labels], out: Any) -> None:
        reason = f"the operator {name}, outside of any layer, reads these channels"
        for labels in known:
            self.hold(labels, reason)
        for tensor in _tensors(out):
            self.put(tensor, self.one(tensor, self.atoms.held(reason)))

    def _same(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        for tensor in _tensors(out):
            self.put(tensor, self.get(args[0]))
        return True

    def _moves(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        data, rest = args[0], args[1:]
        if any(self.get(t) is not None for t in _tensors((rest, kwargs))):
            return False
        outs = list(_tensors(out))
        sources = [labels for t in _tensors(data) if (labels := self.get(t)) is not None]
        loose = all(labels.loose for labels in sources)
        if isinstance(data, Tensor):
            full = self._full(data)
            if name in kinds.RESHAPES:
                found = [full.reshape(outs[0].shape)]
            else:
                found = list(_tensors(func(full, *rest, **kwargs)))
        else:
            found = [func([self._full(t) for t in data], *rest, **kwargs)]
        for tensor, moved in zip(outs, found, strict=True):
            self.put(tensor, labelled(moved, loose))
        return True

    def _full(self, tensor: Tensor) -> Tensor:
        labels = self.get(tensor)
        if labels is None:
            return torch.zeros((), dtype=torch.long).expand(tensor.shape)
        return labels.full()

    def _shuffles(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        full, groups = self._full(args[0]), args[1]
        parts = full.unflatten(1, (groups, -1))
        self.atoms.unite_along(parts, [1])  # there are as many groups of what is left
        self.put(out, labelled(parts.transpose(1, 2).flatten(1, 2)))
        return True

    def _gated(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        halves = self._full(args[0]).chunk(2, args[1] if len(args) > 1 else -1)
        parts = [labels for half in halves if (labels := labelled(half)) is not None]
        self.put(out, self._merged(parts, tuple(out.shape)))
        return True

    def _pads(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        labels = self.get(args[0])
        assert labels is not None
        base, dims = labels.base, out.dim()
        for i, (before, after) in enumerate(zip(args[1][::2], args[1][1::2], strict=True)):
            axis = dims - 1 - i
            if (before or after) and base.shape[axis] > 1:
                # what stands beside the channels has places, and no layer that makes them
                reason = "zeros are padded beside these channels, which fixes their places"
                self.atoms.unite(base, self.atoms.held(reason))
                base = base.amax(axis, keepdim=True)
        self.put(out, Labels(tuple(out.shape), base, labels.loose))
        return True

    def _pointwise(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        parts = [labels for t in _tensors((args, kwargs)) if (labels := self.get(t)) is not None]
        outs = list(_tensors(out))
        merged = self._merged(parts, tuple(outs[0].shape))
        streams = [labels for labels in parts if not labels.loose]
        if name == "add" and len(streams) > 1:
            self.added.append((streams[0].base.unique(), streams[1].base.unique()))
        for tensor in outs:
            self.put(tensor, merged)
        return True

    def _merged(self, parts: Sequence[Labels], shape: tuple[int, ...]) -> Labels | None:
        """Labels that meet element by element, after broadcasting."""
        wide = [_widened(part, len(shape)) for part in parts]
        streams = [part for part in wide if not part.loose]
        found = self._met(streams or wide, shape, loose=not streams)
        if found is not None and streams:
            self.met += [(found, part) for part in wide if part.loose]
        return found

    def _met(self, parts: Sequence[Labels], shape: tuple[int, ...], loose: bool) -> Labels | None:
        varied = [any(p.base.shape[axis] > 1 for p in parts) for axis in range(len(shape))]
        kept = [
            part.base
            for part in parts
            # one channel that is laid over many, as a mask over an image, ties none of them
            if part.base.numel() > 1
            or not any(v and s == 1 < n for v, s, n in zip(varied, part.shape, shape, strict=True))
        ]
        if not kept:
            return None
        result = kept[0]
        for base in kept[1:]:
            self.atoms.unite(result, base)
            result = torch.where(result != 0, result, base)
        return Labels(shape, result, loose)

    def _mixes(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        labels = self.get(args[0])
        if labels is None:
            return False
        dims = len(labels.shape)
        given = _argument(func, args, kwargs, "dim")
        axes = [given] if isinstance(given, int) else list(given or range(dims))
        axes = [axis % dims for axis in axes] if dims else []
        single = len(labels.axes) == 1 and not labels.loose
        if name in kinds.AVERAGES and single and labels.axes[0] in axes:
            return True  # it gives no channel; that it counts them is corrected, see `sized_calls`
        base = self._mix(labels.base, axes, name)
        for tensor in _tensors(out):
            if tensor.dim() == dims:
                self.put(tensor, Labels(tuple(tensor.shape), base, labels.loose))
            else:
                left = [i for i in range(dims) if i not in axes]
                shape = [base.shape[i] for i in left]
                found = Labels(tuple(tensor.shape), base.reshape(shape), labels.loose)
                self.put(tensor, found)
        return True

    def _mix(self, base: Tensor, axes: Sequence[int], name: str) -> Tensor:
        one = self.atoms.unite_along(base, axes)
        if one.numel() < base.numel():
            self.mixed.append((one.unique(), name.strip("_").removeprefix("native_")))
        return one

    def _spatial(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        labels = self.get(args[0])
        if labels is None:
            return False
        outs = list(_tensors(out))
        dims = len(labels.shape)
        changed = [i for i in range(dims) if labels.shape[i] != outs[0].shape[i]]
        axes = range(min([2, dims - 1, *changed]), dims)
        base = self._mix(labels.base, axes, name)
        for tensor in outs:
            self.put(tensor, Labels(tuple(tensor.shape), base))
        return True

    def _products(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Sums over a common axis: what is summed goes together, on both sides."""
        left, right = [t for t in args if isinstance(t, Tensor)][-2:]
        dims = out.dim()
        parts = []
        if (labels := self.get(left)) is not None:
            base = self._mix(labels.base, [left.dim() - 1], name)
            if right.dim() == 1:
                base = base.squeeze(-1)
                parts.append(Labels(tuple(left.shape[:-1]), base))
            else:
                parts.append(Labels((*left.shape[:-1], 1), base))
        if (labels := self.get(right)) is not None:
            axis = max(0, right.dim() - 2)
            base = self._mix(labels.base, [axis], name)
            if right.dim() > 1:
                shape = (*right.shape[:-2], 1, right.shape[-1])
                parts.append(Labels(shape, base))
            elif dims == 0:
                parts.append(Labels((), base.reshape(())))
        if len(parts) == 2:
            parts = self._own(parts, name)
        if name.startswith(("add", "badd")) and (labels := self.get(args[0])) is not None:
            parts.append(labels)
        self.put(out, self._merged(parts, tuple(out.shape)) if parts else None)
        return True

    def _per_channel(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Each channel by itself along axis 1; further tensors hold one number per channel."""
        outs, dims = list(_tensors(out)), args[0].dim()
        if any(tensor.dim() != dims for tensor in outs):
            return False
        self._norms("native_batch_norm", func, args, kwargs, outs)
        labels = self.get(outs[0])
        if labels is not None:
            base = self._mix(labels.base, [i for i in range(dims) if i != 1], name)
            for tensor in outs:
                self.put(tensor, Labels(tuple(tensor.shape), base, labels.loose))
        return True

    def _own(self, parts: list[Labels], name: str) -> list[Labels]:
        """Of two factors, those whose channels what is given has.

        A factor that is the same for every head (the one key of multi-query attention) stays whole
        and ties the heads of the other one not together.
        """
        for shared, other in (parts, parts[::-1]):
            batch = range(other.base.dim() - 2)
            if any(other.base.shape[i] > 1 for i in batch) and all(
                shared.base.shape[i] == 1 for i in batch
            ):
                self._mix(shared.base, range(shared.base.dim()), name)
                return [other]
        return parts

    def _norms(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Norms that are called as functions, with the parameters that go along."""
        x = args[0]
        dims = x.dim()
        parts = [labels] if (labels := self.get(x)) is not None else []
        for tensor in _tensors((args[1:], kwargs)):
            if (labels := self.get(tensor)) is not None:
                base = labels.base
                if name in kinds.BATCH_NORMS:
                    base = along(base, 1, dims) if base.numel() > 1 else base.view([1] * dims)
                    shape = tuple(x.shape[1] if i == 1 else 1 for i in range(dims))
                    labels = Labels(shape, base, labels.loose)
                parts.append(labels)
        merged = self._merged(parts, tuple(x.shape))
        if merged is not None and name in kinds.LAYER_NORMS:
            self._mix(merged.base, range(dims - len(args[1]), dims), name)
        self.put(next(iter(_tensors(out))), merged)
        return True


def _widened(labels: Labels, dims: int) -> Labels:
    """The same with dimensions of size 1 in front, as broadcasting adds them."""
    front = (1,) * (dims - len(labels.shape))
    base = labels.base.view(front + tuple(labels.base.shape))
    return Labels(front + labels.shape, base, labels.loose)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among an operator's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _argument(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    """An argument by its name in the operator's schema."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name)
    return None

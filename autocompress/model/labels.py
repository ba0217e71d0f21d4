"""Labels: which channel every element of a tensor stems from, and which channels go together.

An atom is one channel of one axis of a weight (or one element of a parameter outside of layers).
Atoms that can only be removed together are united; the classes that remain are what pruning can
choose from. Label 0 stands for no channel: constants, which take any shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Labels:
    """An atom for every element of a tensor.

    Args:
        shape: of the tensor.
        base: int64, of as many dimensions, each of full size where the atoms differ along it and
            of size 1 where they do not.
        loose: whether the elements come from parameters outside of layers only: these follow the
            channels that they meet, and tie none of them together.
    """

    shape: tuple[int, ...]
    base: Tensor
    loose: bool = False

    def full(self) -> Tensor:
        """One atom per element, of the tensor's shape."""
        return self.base.expand(self.shape)

    @property
    def axes(self) -> list[int]:
        """The dimensions along which the atoms differ."""
        return [axis for axis, size in enumerate(self.base.shape) if size > 1]


def compact(base: Tensor) -> Tensor:
    """Every dimension along which nothing differs, of size 1."""
    for axis, size in enumerate(base.shape):
        if size > 1:
            first = base.narrow(axis, 0, 1)
            if bool((base == first).all()):
                base = first
    return base


def labelled(full: Tensor, loose: bool = False) -> Labels | None:
    """Labels of a tensor; ``None`` where no element has an atom."""
    base = compact(full)
    if not base.numel() or not bool(base.any()):
        return None
    return Labels(tuple(full.shape), base, loose)


def along(values: Tensor, axis: int, dims: int) -> Tensor:
    """A vector laid along one axis of ``dims``."""
    return values.view([-1 if d == axis else 1 for d in range(dims)])


class Atoms:
    """All atoms of one model, which of them go together, and which must stay."""

    def __init__(self) -> None:
        self.count = 1
        self._pairs: list[Tensor] = []
        self._reasons: dict[int, str] = {}
        self._held: dict[str, int] = {}
        self._stuck: list[tuple[Tensor, int]] = []
        self._found: tuple[tuple[int, int], Tensor] = ((-1, -1), torch.zeros(0))

    def new(self, count: int) -> Tensor:
        """Atoms that nothing else is."""
        start = self.count
        self.count += count
        return torch.arange(start, self.count)

    def held(self, reason: str) -> Tensor:
        """The atom that stands for what must stay for a reason."""
        if reason not in self._held:
            self._held[reason] = int(self.new(1))
            self._reasons[self._held[reason]] = reason
        return torch.tensor(self._held[reason])

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Pairs of atoms, after broadcasting, go together; with one that is held, they stay."""
        first, second = torch.broadcast_tensors(first, second)
        pairs = torch.stack([first.flatten(), second.flatten()])
        pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs != 0).all(0)]
        if not pairs.numel():
            return
        pairs = torch.unique(pairs, dim=1)
        for atom in self._reasons:
            with_held = (pairs == atom).any(0)
            if bool(with_held.any()):
                self._stuck.append((pairs[:, with_held].flatten(), atom))
                pairs = pairs[:, ~with_held]
        if pairs.numel():
            self._pairs.append(pairs)

    def unite_along(self, base: Tensor, axes: Iterable[int]) -> Tensor:
        """Atoms that differ along some axes only go together.

        Returns:
            One of them for all, the axes of size 1.
        """
        for axis in axes:
            if base.shape[axis] > 1:
                one = base.amax(axis, keepdim=True)
                self.unite(base, one)
                base = one
        return base

    def classes(self) -> Tensor:
        """``(count,)``: the class of every atom; that of atom 0 is its own."""
        if self._found[0] != (len(self._pairs), self.count):
            from scipy.sparse import coo_array
            from scipy.sparse.csgraph import connected_components

            pairs = torch.cat([torch.zeros(2, 0, dtype=torch.long), *self._pairs], 1).numpy()
            ones = torch.ones(pairs.shape[1], dtype=torch.int8).numpy()
            graph = coo_array((ones, (pairs[0], pairs[1])), shape=(self.count, self.count))
            _, found = connected_components(graph, directed=False)
            self._found = ((len(self._pairs), self.count), torch.from_numpy(found).long())
        return self._found[1]

    def reasons(self) -> dict[int, str]:
        """Class to the first reason why it must stay; classes that may go are not named."""
        classes = self.classes()
        found = {int(classes[atom]): reason for atom, reason in self._reasons.items()}
        for atoms, atom in self._stuck:
            for c in classes[atoms].unique().tolist():
                found.setdefault(c, self._reasons[atom])
        return found

    def free_classes(self) -> Tensor:
        """As ``classes``, with one and the same for all that must stay."""
        found = self.classes().clone()
        stuck = torch.tensor(sorted(self.reasons()), dtype=torch.long)
        found[torch.isin(found, stuck)] = self.count
        return found

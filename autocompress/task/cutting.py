"""Splits that are missing are cut from ``train``, by one rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.task.split import Split

SHARE = 0.1
"""Of ``train``, for each split that is missing."""

SEED = 0
FEWEST = 20
"""Samples that ``train`` must have for a split to be cut from it."""


@dataclass(frozen=True)
class Draws:
    """What a sampler draws that gives samples more than once.

    Args:
        samples: what it may draw, each once: indices into the data set.
        order: what it draws: indices into these.
        count: samples of the data set.
    """

    samples: Tensor
    order: Tensor
    count: int


def cut(
    parts: Mapping[str, Split], groups: Any = None, draws: Draws | None = None
) -> tuple[dict[str, Split], list[str]]:
    """Fill in ``val`` and ``test``.

    Each that is missing gets a tenth of ``train``, drawn with a fixed seed: with the same share of
    every label where there is one per sample, and in whole groups where groups are given.

    Args:
        parts: with ``train``, every sample of it once.
        groups: per sample of ``train``, what belongs together.
        draws: how often ``train`` has the samples that are left to it; ``None``: once.

    Returns:
        All three, and what to say about it.

    Raises:
        InputError: ``train`` is too small, or there are not as many groups as samples.
    """
    missing = [name for name in ("val", "test") if name not in parts]
    train = parts["train"]
    if not missing:
        return dict(parts), []
    if len(train) < FEWEST:
        raise InputError(
            f"A `train` split of {len(train)} samples is too small to cut `{missing[0]}` from it "
            f"(at least {FEWEST}). Give the data a `{missing[0]}` split."
        )
    shares = [1 - SHARE * len(missing), *[SHARE] * len(missing)]
    labels = train.labels
    if groups is not None:
        how, lack = "whole groups", "the groups of `train` are too few or too large"
        indices = grouped(_numbers(groups, len(train), draws), shares, SEED)
    elif labels is not None:
        how, lack = _described(labels, shares), "`train` has too few samples"
        indices = stratified(labels.cpu(), shares, SEED)
    else:
        how, lack = "at random", "`train` has too few samples"
        indices = stratified(torch.zeros(len(train), dtype=torch.int64), shares, SEED)
    if draws is not None:
        indices[0] = draws.order[torch.isin(draws.order, indices[0])]
    found = dict(parts)
    for name, index in zip(["train", *missing], indices, strict=True):
        if len(index) == 0:
            needed = " and ".join(f"`{split}`" for split in missing)
            raise InputError(
                f"Nothing is left for `{name}`: {lack}. Give the data {needed} of their own."
            )
        found[name] = train.subset(index)
    names = " and ".join(f"`{name}` ({len(found[name])} samples)" for name in missing)
    note = f"{names} {'was' if len(missing) == 1 else 'were'} cut from `train`: {how}, seed {SEED}."
    notes = [note] if draws is None else [note, _DRAWN]
    return {name: found[name] for name in ("train", "val", "test")}, notes


_DRAWN = (
    "The sampler of `train` draws samples more than once: what was cut holds each once, without "
    "the sampler's weights, and none of it is drawn for `train`."
)


def _described(labels: Tensor, shares: Sequence[float]) -> str:
    """How samples with labels are divided, for people."""
    together = _rare(labels.unique(return_counts=True)[1], shares)[1]
    if bool(together.all()):
        return "at random"
    return f"the same share of every label{', rare ones at random' if bool(together.any()) else ''}"


def stratified(targets: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Disjoint random index sets, each with the same share of every label, to a sample.

    What a label leaves over or takes too much is made up for by the next ones. Rare labels have a
    sample in every set, if they are few; else they are drawn together, at random.

    Args:
        targets: labels ``(N,)``, whole numbers of any size.
        shares: fractions that sum to 1.
        seed: of the draw.

    Returns:
        One sorted index tensor per share; together they hold every index once.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers, counts = targets.unique(return_inverse=True, return_counts=True)[1:]
    rare, together = _rare(counts, shares)
    alone = [(~together & rare), ~rare]
    labels = [label for kind in alone for label in kind.nonzero().flatten().tolist()]
    parts: list[list[Tensor]] = [[] for _ in shares]
    owed = [0.0] * len(shares)
    for member in (*(numbers == label for label in labels), together[numbers]):
        index = member.nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        exact = [len(index) * share for share in shares]
        sizes = [math.floor(size + 1e-9) for size in exact]
        if len(index) >= len(shares):
            sizes = [max(1, size) for size in sizes]
            sizes[sizes.index(max(sizes))] -= max(0, sum(sizes) - len(index))
        owed = [o + e - s for o, e, s in zip(owed, exact, sizes, strict=True)]
        order = sorted(range(len(shares)), key=lambda i: -owed[i])
        for place in order[: len(index) - sum(sizes)]:  # the largest remainders
            sizes[place] += 1
            owed[place] -= 1
        for part, chosen in zip(parts, index.split(sizes), strict=True):
            part.append(chosen)
    return [torch.cat(part).sort().values for part in parts]


def _rare(counts: Tensor, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Which labels, by how often they occur, have no whole sample in every share.

    Returns:
        These, and those among them that are drawn together: that are too few for a sample in every
        set, or all of them, where such samples would make a set larger by a fifth.
    """
    rare = counts * min(shares) < 1 - 1e-9
    too_few = rare & (counts < len(shares))
    many = int((rare & ~too_few).sum()) > min(shares) * int(counts.sum()) / 5
    return rare, rare if many else too_few


def grouped(groups: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Disjoint random index sets of whole groups, as near to the shares as groups allow.

    Args:
        groups: number of each sample's group ``(N,)``.
        shares: fractions that sum to 1.
        seed: of the order in which groups are given out.

    Returns:
        One sorted index tensor per share; together they hold every index once.
    """
    generator = torch.Generator().manual_seed(seed)
    names, sizes = groups.unique(return_counts=True)
    order = torch.randperm(len(names), generator=generator)
    wanted = [share * len(groups) for share in shares]
    of_group = torch.zeros(len(names), dtype=torch.int64)
    filled = [0.0] * len(shares)
    # the smallest shares first, so that they get a group at all
    for place in order.tolist():
        size = int(sizes[place])
        room = [(w - f) / w for w, f in zip(wanted, filled, strict=True)]
        part = max(range(len(shares)), key=lambda i: (room[i], -wanted[i]))
        of_group[place] = part
        filled[part] += size
    where = of_group[torch.searchsorted(names, groups)]
    return [(where == part).nonzero().flatten() for part in range(len(shares))]


def _numbers(groups: Any, count: int, draws: Draws | None) -> Tensor:
    """Groups of any kind as numbers."""
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if draws is not None:
        count = draws.count
    if len(numbers) != count:
        raise InputError(
            f"`groups` needs one entry per sample of `train`: {count}, got {len(numbers)}."
        )
    found = torch.from_numpy(numbers.reshape(-1))
    return found if draws is None else found[draws.samples]

"""Splits that are missing are cut from ``train``, by one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def cut(parts: Mapping[str, Split], groups: Any = None) -> tuple[dict[str, Split], list[str]]:
    """Fill in ``val`` and ``test``.

    Each that is missing gets a tenth of ``train``, drawn with a fixed seed: with the same share of
    every class where the targets are class indices, and in whole groups where groups are given.

    Args:
        parts: with ``train``.
        groups: per sample of ``train``, what belongs together.

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
        how = "whole groups"
        indices = grouped(_numbers(groups, len(train)), shares, SEED)
    elif labels is not None:
        how = "the same share of every class"
        indices = stratified(labels.cpu(), shares, SEED)
    else:
        how = "at random"
        indices = stratified(torch.zeros(len(train), dtype=torch.int64), shares, SEED)
    found = dict(parts)
    for name, index in zip(["train", *missing], indices, strict=True):
        if len(index) == 0:
            raise InputError(
                f"Nothing is left for `{name}`: the groups of `train` are too few or too large. "
                f"Give the data a `{name}` split."
            )
        found[name] = train.subset(index)
    names = " and ".join(f"`{name}` ({len(found[name])} samples)" for name in missing)
    note = f"{names} {'was' if len(missing) == 1 else 'were'} cut from `train`: {how}, seed {SEED}."
    return {name: found[name] for name in ("train", "val", "test")}, [note]


def stratified(targets: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Disjoint random index sets, each with (nearly) the same share of every class.

    Args:
        targets: class indices ``(N,)``.
        shares: fractions that sum to 1.
        seed: of the draw.

    Returns:
        One sorted index tensor per share; together they hold every index once.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in range(int(targets.max()) + 1):
        index = (targets == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        bounds = [round(len(index) * sum(shares[: i + 1])) for i in range(len(shares))]
        for i, bound in enumerate(bounds):
            parts[i].append(index[bounds[i - 1] if i else 0 : bound])
    return [torch.cat(part).sort().values for part in parts]


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


def _numbers(groups: Any, count: int) -> Tensor:
    """Groups of any kind as numbers."""
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if len(numbers) != count:
        raise InputError(
            f"`groups` needs one entry per sample of `train`: {count}, got {len(numbers)}."
        )
    return torch.from_numpy(numbers.reshape(-1))

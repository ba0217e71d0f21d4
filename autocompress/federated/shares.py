"""How a simulation shares one data set out among clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError, nearest
from autocompress.policy.federation import FederationSection
from autocompress.task.data import Data

SPLITS = ("train", "val", "test")
_TRIES = 100
"""Draws of Dirichlet shares until every client has a sample of every split."""


def shared_out(data: Data, section: FederationSection) -> list[dict[str, Tensor]]:
    """Which samples every client has.

    Args:
        data: of all clients.
        section: how many there are, and the rule.

    Returns:
        For each client and split, indices into the split; no sample has two owners.

    Raises:
        InputError: there are too few samples, or the rule does not fit the data.
    """
    if section.split == "column":
        return _by_column(data, str(section.column))
    generator = np.random.default_rng(section.seed)
    clients = section.clients
    sizes = {name: len(getattr(data, name)) for name in SPLITS}
    if min(sizes.values()) < clients:
        raise InputError(
            f"{clients} clients need a sample each of every split, the data have {sizes}. Give "
            "fewer --clients."
        )
    if section.split == "iid":
        parts = {n: np.array_split(generator.permutation(s), clients) for n, s in sizes.items()}
    else:
        parts = _by_class(data, section, generator)
    return [
        {name: torch.from_numpy(np.sort(parts[name][client])) for name in SPLITS}
        for client in range(clients)
    ]


def part_of(data: Data, indices: Mapping[str, Tensor]) -> Data:
    """The data of one client."""
    splits = {name: getattr(data, name).subset(indices[name]) for name in SPLITS}
    return replace(data, **splits)


def _by_class(
    data: Data, section: FederationSection, generator: np.random.Generator
) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Every class is shared out in proportions of its own, the same in all three splits.

    References:
        Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification, 2019.
    """
    labels = {}
    for name in SPLITS:
        found = getattr(data, name).labels
        if found is None:
            raise InputError(
                "`split: dirichlet` shares out classes, but the targets are no classes. Use `iid`, "
                "or a `column`."
            )
        labels[name] = found.cpu().numpy()
    classes = np.unique(labels["train"])
    for _ in range(_TRIES):
        shares = generator.dirichlet([section.alpha] * section.clients, len(classes))
        parts: dict[str, list[np.ndarray[Any, Any]]] = {}
        for name in SPLITS:
            own: list[list[np.ndarray[Any, Any]]] = [[] for _ in range(section.clients)]
            for label, share in zip(classes, shares, strict=True):
                members = generator.permutation(np.flatnonzero(labels[name] == label))
                ends = np.round(np.cumsum(share)[:-1] * len(members)).astype(int)
                for client, some in enumerate(np.split(members, ends)):
                    own[client].append(some)
            parts[name] = [np.concatenate(some) for some in own]
        if all(len(some) for name in SPLITS for some in parts[name]):
            return parts
    raise InputError(
        f"With `alpha: {section.alpha:g}` some of {section.clients} clients are left without "
        "samples. Raise it, or give fewer clients."
    )


def _by_column(data: Data, column: str) -> list[dict[str, Tensor]]:
    found = data.extra.get(column)
    if not isinstance(found, Mapping) or not all(name in found for name in SPLITS):
        known = [k for k, v in data.extra.items() if isinstance(v, Mapping)]
        raise InputError(
            f"The data have no column {column!r} (`extra`, with a list of values for each split); "
            f"{nearest(column, known)}"
        )
    values: dict[str, Sequence[Any]] = {name: [str(v) for v in found[name]] for name in SPLITS}
    clients = sorted(set(values["train"]))
    parts = [
        {
            name: torch.tensor([i for i, v in enumerate(values[name]) if v == client])
            for name in SPLITS
        }
        for client in clients
    ]
    for client, own in zip(clients, parts, strict=True):
        for name in SPLITS:
            if not len(own[name]):
                raise InputError(f"{column} {client!r} has no sample in {name}.")
    return parts

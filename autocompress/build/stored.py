"""The file of a layer bank: orders, moments, factors, and how often rows of tables are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autocompress.build.rows import RowCounts
from autocompress.policy.values import Factorization
from autocompress.policy.writing import replacing
from autocompress.techniques.moments import Moments

Factors = dict[str, tuple[Factorization, ...]]
Stored = tuple[dict[str, list[int]], Mapping[str, Moments], Factors, dict[str, RowCounts]]


class _LazyMoments(Mapping[str, Moments]):
    """Moments that are read from the cache file when they are needed."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path = path
        self._names = names

    def __getitem__(self, name: str) -> Moments:
        from safetensors import safe_open

        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, "pt") as file:
            return Moments(file.get_tensor(f"moments.{name}"))

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_bank(path: Path) -> Stored:
    """Orders, moments (read when they are asked for), factors, and counts of rows."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        keys, about = list(file.keys()), file.metadata()
        samples = json.loads(about["rows"])
        rows = {n: RowCounts(file.get_tensor(f"rows.{n}"), samples[n]) for n in samples}
        orders = {
            n.removeprefix("order."): file.get_tensor(n).tolist()
            for n in keys
            if n.startswith("order.")
        }
    names = [n.removeprefix("moments.") for n in keys if n.startswith("moments.")]
    factors = {name: tuple(found) for name, found in json.loads(about["factors"]).items()}
    return orders, _LazyMoments(path, names), factors, rows


def write_bank(path: Path, stored: Stored) -> None:
    """Put them into one file."""
    from safetensors.torch import save_file

    orders, moments, factors, rows = stored
    tensors = {f"order.{n}": torch.tensor(o) for n, o in orders.items()}
    tensors |= {f"moments.{n}": m.second.contiguous() for n, m in moments.items()}
    tensors |= {f"rows.{n}": found.counts for n, found in rows.items()}
    about = {
        "factors": json.dumps(factors),
        "rows": json.dumps({n: found.samples for n, found in rows.items()}),
    }
    with replacing(path) as partial:
        save_file(tensors, partial, about)

"""Random samples of a split hold every class, in an order that is the same everywhere."""

from __future__ import annotations

import pytest
import torch

from autocompress.task.split import Split


def _expected(labels: list[int], count: int, seed: int) -> list[int]:
    """Word for word: the last surplus sample makes room for the first one of a missing class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen, rest, place = order[:count], order[count:], count
    if len(set(labels)) > count:
        return chosen
    for label in sorted(set(labels) - {labels[i] for i in chosen}):
        place -= 1
        while [labels[i] for i in chosen].count(labels[chosen[place]]) < 2:
            place -= 1
        chosen[place] = next(i for i in rest if labels[i] == label)
    return chosen


@pytest.mark.parametrize("seed", range(40))
def test_every_class_is_among_the_places(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    total = int(torch.randint(5, 60, (), generator=draws))
    classes, count = (int(torch.randint(2, total, (), generator=draws)) for _ in range(2))
    labels = torch.randint(0, classes, (total,), generator=draws)
    found = Split(torch.zeros(total, 1), labels).places(count, seed)
    assert found.tolist() == _expected(labels.tolist(), count, seed)
    assert found.dtype == torch.long


def test_many_rare_classes_are_found() -> None:
    """One by one through all samples, this would take hours."""
    labels = torch.arange(400_000) // 2 % 150_000
    found = Split(torch.zeros(400_000, 1), labels).places(180_000)
    assert len(labels[found].unique()) == 150_000
    assert len(found.unique()) == 180_000

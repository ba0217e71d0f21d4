"""Samples that are missing, broken, of one class or not a number are told of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler
from torch.utils.data import default_collate as put

from autocompress.errors import InputError
from autocompress.task.data import Data
from autocompress.task.ready import ready

COUNT = 120
X = torch.arange(float(COUNT))[:, None].repeat(1, 3)
Y = torch.arange(COUNT) % 3


class Rows(Dataset[Any]):
    """Sample 37 is whatever a function says."""

    def __init__(self, odd: Callable[[], Any] | None = None) -> None:
        self.odd = odd

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.odd() if self.odd and index == 37 else (X[index], int(Y[index]))


class Stream(IterableDataset[Any]):
    """Gives every worker all samples."""

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[Any]:
        return iter([(X[i], int(Y[i])) for i in range(COUNT)])


def without_none(rows: list[Any]) -> Any:
    return put([row for row in rows if row is not None])


def twice(rows: list[Any]) -> Any:
    return put([*rows, *rows])


@pytest.mark.parametrize("memory", ["1GB", "1KB"])
def test_a_sample_that_cannot_be_read_is_named(memory: str) -> None:
    says = "Sample 37 of Rows cannot be read: a number is divided by zero"
    with pytest.raises(InputError, match=says):
        Data.wrap({"train": Rows(lambda: 1 / 0)}, memory=memory).train.inputs()


@pytest.mark.parametrize("collate", [without_none, twice])
def test_samples_are_never_taken_for_others(collate: Callable[[Any], Any]) -> None:
    loader = DataLoader(Rows(lambda: None), batch_size=8, collate_fn=collate)
    if collate is twice:
        loader = DataLoader(Rows(), batch_size=8, collate_fn=collate)
    with pytest.raises(InputError, match="as many samples as it takes"):
        Data.wrap({"train": loader}, memory="1KB").train.inputs()
    drawn = WeightedRandomSampler([1.0] * COUNT, 2 * COUNT)
    again = DataLoader(loader.dataset, batch_size=8, collate_fn=collate, sampler=drawn)
    with pytest.raises(InputError, match="as many samples as it takes"):
        Data.wrap({"train": again})


def test_a_stream_is_read_once_however_many_workers_a_loader_has() -> None:
    data = Data.wrap({"train": DataLoader(Stream(), batch_size=16, num_workers=2)})
    found = [float(x) for s in (data.train, data.val, data.test) for x in s.stored[:, 0]]
    assert sorted(found) == list(range(COUNT))


def test_a_number_beside_the_columns_is_no_column() -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        x, y = put(rows)
        return {"x": x, "label": y, "weight": torch.tensor(0.5)}

    data = Data.wrap({"train": DataLoader(Rows(), batch_size=8, collate_fn=collate)})
    assert set(data.train.stored) == {"x"}


@pytest.mark.parametrize("empty", [(X[:0], Y[:0]), []])
def test_an_empty_split_is_named(empty: Any) -> None:
    with pytest.raises(InputError, match="The `val` split: A split is empty"):
        Data.wrap({"train": (X, Y), "val": empty})


def told(**splits: tuple[Tensor, Tensor]) -> str:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        Data.wrap({"train": (X, Y), "val": (X + 1, Y), "test": (X + 2, Y), **splits})
    return " ".join(str(w.message) for w in found)


def test_one_class_and_nan_are_warned_about() -> None:
    hole = X.clone()
    hole[5, 1] = float("nan")
    assert told() == ""
    assert "All 120 samples of the `val` split have the target 2" in told(val=(X, Y * 0 + 2))
    assert "Inputs of the `test` split hold NaN" in told(test=(hole, Y))


def test_answers_that_are_no_number_are_counted() -> None:
    judge = ready("classification").judge()
    outputs = torch.randn(6, 3)
    outputs[1, 0] = outputs[4, 1] = outputs[4, 2] = float("nan")
    judge.update(outputs, Y[:6])
    judge.update(torch.randn(4, 3), Y[:4])
    assert any(
        "For 2 of 10 samples the answer is not a number" in p for p in judge.result().problems
    )
    fine = ready("classification").judge()
    fine.update(torch.full((3, 3), -torch.inf).fill_diagonal_(1.0), Y[:3])
    assert fine.result().problems == ()

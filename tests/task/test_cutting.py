"""Splits that are missing: disjoint, complete, and as the rule says."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.task.cutting import grouped
from autocompress.task.data import Data, Described

X, Y = torch.arange(200.0)[:, None], torch.arange(200) % 2 * (torch.arange(200) < 40).long()


def parts(data: Data) -> list[list[float]]:
    return [s.stored.flatten().tolist() for s in (data.train, data.val, data.test)]


def test_what_is_missing_is_cut_from_train_with_the_shares_of_the_classes() -> None:
    data = Data.wrap({"train": (X, Y)})
    found = parts(data)
    assert sorted(i for part in found for i in part) == X.flatten().tolist()
    assert [len(p) for p in found] == [160, 20, 20]
    # a tenth of all samples are of class 1, in every split
    for split in (data.train, data.val, data.test):
        assert float(split.targets.float().mean()) == pytest.approx(0.1, abs=0.01)
    assert "`val` (20 samples) and `test` (20 samples) were cut from `train`" in data.notes[0]
    assert "same share of every class" in data.notes[0]
    assert parts(Data.wrap({"train": (X, Y)})) == found


def test_only_what_is_missing_is_cut() -> None:
    data = Data.wrap({"train": (X, Y), "validation": (X + 1000, Y)})
    assert [len(p) for p in parts(data)] == [180, 200, 20]
    assert "`test` (20 samples) was cut" in data.notes[0]
    assert not Data.wrap({"train": (X, Y), "val": (X + 1, Y), "test": (X + 2, Y)}).notes


def test_no_group_is_cut_apart() -> None:
    groups = [f"speaker {i % 25}" for i in range(200)]
    data = Data.wrap({"train": (X, Y), "groups": groups})
    sets = [{groups[int(i)] for i in part} for part in parts(data)]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert sum(map(len, sets)) == 25
    with pytest.raises(InputError, match="200, got 3"):
        Data.wrap({"train": (X, Y)}, groups=[1, 2, 3])


@given(st.lists(st.integers(0, 12), min_size=30, max_size=80))
def test_groups_of_any_sizes(groups: list[int]) -> None:
    found = grouped(torch.tensor(groups), [0.8, 0.1, 0.1], 0)
    assert sorted(i for part in found for i in part.tolist()) == list(range(len(groups)))
    held = [{groups[i] for i in part.tolist()} for part in found]
    assert sum(map(len, held)) == len(set(groups))


def test_val_that_is_train_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="`val` split holds the same samples as `train`"):
        Data.wrap({"train": (X, Y), "val": (X, Y), "test": (X + 1, Y)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Data.wrap({"train": (X, Y), "val": (X + 2, Y), "test": (X + 1, Y)})


def test_what_cannot_be_cut_is_said() -> None:
    with pytest.raises(InputError, match="19 samples is too small"):
        Data.wrap({"train": (X[:19], Y[:19])})
    with pytest.raises(InputError, match=r"need a `train` split.*keys \['valid'\]"):
        Data.wrap({"valid": (X, Y)})
    with pytest.raises(InputError, match="The `train` split: A split must be a Dataset"):
        Data.wrap({"train": 3})


def test_what_was_said_in_a_call_goes_with_the_data() -> None:
    rows = [{"a": float(i), "mark": i % 2} for i in range(40)]
    options: dict[str, Any] = {"target_fn": lambda batch: batch["mark"]}
    data = Data.wrap(Described({"train": rows, "name": "mine"}, options))
    assert data.name == "mine"
    assert data.train.stored.keys() == {"a", "mark"}
    assert len(data.val) == 4

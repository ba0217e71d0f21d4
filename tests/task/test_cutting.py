"""Splits that are missing: disjoint, complete, and as the rule says."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from autocompress.errors import InputError
from autocompress.task.cutting import grouped, stratified
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
    assert "same share of every label, seed" in data.notes[0]
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


FORMS: dict[str, Any] = {
    "index": lambda y: y,
    "column": lambda y: y[:, None],
    "flag": lambda y: y.bool(),
    "float": lambda y: y.float(),
    "one-hot": lambda y: torch.nn.functional.one_hot(y, 2),
    "far from 0": lambda y: y * 10**9 - 5,
}


@pytest.mark.parametrize("count", [3, 4, 6, 9, 10, 11])
@pytest.mark.parametrize("form", FORMS)
def test_rare_labels_are_everywhere_however_they_are_written(form: str, count: int) -> None:
    y = torch.zeros(600, dtype=torch.int64)
    y[torch.randperm(600, generator=torch.Generator().manual_seed(1))[:count]] = 1
    places = torch.arange(600)
    data = Data.wrap({"train": (places, FORMS[form](y))})
    sizes = [len(s) for s in (data.train, data.val, data.test)]
    assert max(abs(a - b) for a, b in zip(sizes, (480, 60, 60), strict=True)) <= 1
    found = [int(y[s.stored].sum()) for s in (data.train, data.val, data.test)]
    assert found in ([count - 2, 1, 1], [8, 2, 1], [8, 1, 2])


@pytest.mark.parametrize("each", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 25])
def test_a_tenth_is_a_tenth_however_few_there_are_of_a_class(each: int) -> None:
    labels = torch.arange(100).repeat(each)
    data = Data.wrap({"train": (torch.arange(100 * each), labels)})
    for split in (data.val, data.test):
        assert abs(len(split) - 10 * each) <= 1
        counts = torch.bincount(split.targets, minlength=100)
        assert int(counts.max()) <= each
        if each >= 10:
            assert {abs(c - each / 10) < 1 for c in counts.tolist()} == {True}
    assert ("at random" in data.notes[0]) == (each < 10)


@given(st.lists(st.integers(-3, 30), min_size=1, max_size=150), st.integers(0, 3))
def test_every_set_has_its_share_of_all_and_of_each_label(labels: list[int], seed: int) -> None:
    shares = (0.8, 0.1, 0.1)
    found = stratified(torch.tensor(labels), shares, seed)
    assert torch.cat(found).sort().values.tolist() == list(range(len(labels)))
    for part, share in zip(found, shares, strict=True):
        assert abs(len(part) - share * len(labels)) < 2 + 0.02 * len(labels)
        for label in {x for x in labels if labels.count(x) >= 10}:
            own = sum(labels[i] == label for i in part.tolist())
            assert abs(own - share * labels.count(label)) < 1


def test_counts_are_no_classes_where_each_is_rare() -> None:
    counts = torch.randint(1800, (2000,), generator=torch.Generator().manual_seed(0))
    data = Data.wrap({"train": (torch.arange(2000), counts)})
    assert [len(s) for s in (data.train, data.val, data.test)] == [1600, 200, 200]
    assert "cut from `train`: at random, seed" in data.notes[0]
    mixed = torch.cat([torch.zeros(100, dtype=torch.int64), torch.arange(1, 50)])
    data = Data.wrap({"train": (torch.arange(149), mixed)})
    assert "the same share of every label, rare ones at random" in data.notes[0]


def drawing(samples: int, **more: Any) -> tuple[DataLoader[Any], Tensor]:
    labels = (torch.arange(400) < 40).long()
    weights = torch.where(labels == 1, 9.0, 1.0)
    weights[399] = 0.0
    sampler = WeightedRandomSampler(weights, samples, **more)
    source = TensorDataset(torch.arange(400.0)[:, None], labels)
    return DataLoader(source, batch_size=20, sampler=sampler), labels


@pytest.mark.parametrize("memory", ["1GB", "1KB"])
def test_no_sample_that_is_drawn_twice_is_in_two_splits(memory: str) -> None:
    loader, labels = drawing(400)
    if memory == "1KB":  # a data set that is not in memory already
        source = list(zip(torch.arange(400.0)[:, None], labels.tolist(), strict=True))
        loader = DataLoader(source, batch_size=20, sampler=loader.sampler)  # type: ignore[arg-type]  # a list is one
    data = Data.wrap({"train": loader}, memory=memory)
    train, val, test = (
        s.take(slice(None))[0].flatten().long() for s in (data.train, data.val, data.test)
    )
    sets = [set(part.tolist()) for part in (train, val, test)]
    assert [len(s) for s in sets[1:]] == [len(val), len(test)] == [40, 40]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    # the weights hold for `train` alone, whose two labels they make equal; 399 is never drawn
    assert float(labels[train].float().mean()) == pytest.approx(0.5, abs=0.1)
    if memory == "1GB":
        assert float(labels[val].float().mean()) == pytest.approx(0.1, abs=0.01)
    assert len(set(train.tolist())) < len(train)
    assert len(train) == pytest.approx(320, abs=25)
    assert 399 not in set.union(*sets)
    assert "draws samples more than once" in data.notes[1]
    again = Data.wrap({"train": loader}, memory=memory)
    assert again.fingerprint == data.fingerprint  # the draws do not depend on when they are made


def test_groups_are_those_of_the_data_set_where_samples_are_drawn() -> None:
    loader, _ = drawing(400)
    groups = torch.arange(400) % 40
    data = Data.wrap({"train": loader}, groups=groups)
    held = [set((s.stored.flatten() % 40).tolist()) for s in (data.train, data.val, data.test)]
    assert sum(map(len, held)) == 40
    whole = Data.wrap({"train": loader, "val": (X, Y), "test": (X + 1, Y)})
    assert len(whole.train) == 400
    assert not whole.notes

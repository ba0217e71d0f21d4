"""Batches as loaders give them, taken apart and joined."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.errors import InputError
from autocompress.task.batches import Reader, as_tensors, collate, join, join_targets

X, Y, Z = torch.arange(8.0).view(4, 2), torch.arange(4), torch.arange(4.0)


def test_pairs_triples_and_collated_lists() -> None:
    read = Reader()
    assert read((X, Y)) == (X, Y)
    inputs, targets = read([X, Z, Y])
    assert isinstance(inputs, tuple)
    assert [inputs[0] is X, inputs[1] is Z, targets is Y] == [True] * 3
    inputs, targets = read([[X, Z], Y])
    assert isinstance(inputs, tuple)
    assert targets is Y
    inputs, targets = read(({"a": X, "b": Z}, Y))
    assert list(inputs) == ["a", "b"]


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("key", ["labels", "label", "target", "targets", "y"])
def test_mappings_keep_their_labels_apart(kind: Any, key: str) -> None:
    inputs, targets = Reader()(kind({"input_ids": X, "text": ["a"] * 4, key: Y}))
    assert list(inputs) == ["input_ids"]
    assert targets is Y


def test_functions_for_anything_else() -> None:
    batch = {"left": X, "right": Z, "mark": Y}
    read = Reader(lambda b: (b["left"], b["right"]), lambda b: b["mark"])
    inputs, targets = read(batch)
    assert inputs[1] is Z
    assert targets is Y
    assert Reader(target_fn=lambda b: b["mark"])(batch)[0].keys() == {"left", "right", "mark"}
    assert Reader(target_fn=lambda b: b)(X) == (X, X)  # an autoencoder


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (X, "must yield .input, target., got Tensor"),
        ([X], "must yield .input, target., got list of 1"),
        ({"x": X, "z": Z}, "has no targets among them"),
        ({"text": ["a", "b"], "labels": Y}, "inputs of a batch hold no tensor"),
        ((X, Y[:3]), "4 inputs and 3 targets"),
        ((X, ["cat"] * 4), "targets of a batch hold no tensor"),
    ],
)
def test_what_cannot_be_read_is_said_with_the_way_out(batch: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        Reader()(batch)
    assert "_fn" in str(caught.value)


def test_rows_of_lists_arrays_and_numbers_become_tensors() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "pixels": np.ones((2, 2), np.float32), "labels": i, "text": "a"}
        for i in range(3)
    ]
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3]] * 3
    assert batch["pixels"].shape == (3, 2, 2)
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["text"] == ["a"] * 3


def test_lists_of_numbers_are_tensors_and_lists_of_tensors_stay() -> None:
    found = as_tensors({"a": [[1, 2], [3, 4]], "b": [X, Z], "c": [[1], [2, 3]], "d": ["a"]})
    assert found["a"].tolist() == [[1, 2], [3, 4]]
    assert found["b"][0] is X
    assert [part.tolist() for part in found["c"]] == [[1], [2, 3]]
    assert found["d"] == ["a"]


def test_texts_of_unlike_length_are_padded_by_their_mask() -> None:
    long = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
    short = {"input_ids": torch.tensor([[8, 9]]), "attention_mask": torch.tensor([[1, 0]])}
    joined = join([long, short])
    # 9 stands where a text is masked, so it is what this tokenizer pads with
    assert joined["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert joined["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    rows = [{"input_ids": [1] * n, "attention_mask": [1] * n, "labels": [2] * n} for n in (2, 4, 1)]
    found = collate(rows)
    assert found["labels"].tolist() == [[2, 2, -100, -100], [2] * 4, [2, -100, -100, -100]]
    assert found["attention_mask"].sum(1).tolist() == [2, 4, 1]
    tokens = join_targets([torch.tensor([[1, 2]]), torch.tensor([[3]])])
    assert tokens.tolist() == [[1, 2], [3, -100]]


def test_sizes_that_nothing_says_how_to_pad_are_refused() -> None:
    with pytest.raises(InputError, match=r"unlike sizes.*Resize or pad"):
        join([torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 8)])

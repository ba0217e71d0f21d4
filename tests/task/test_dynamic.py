"""Free axes: read, found, resized."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.task.dynamic import candidates, other_size, read_axes, resized, sizes_of

TEXT = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6).long()}
AXES = {"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}}


def test_axes_are_read_as_they_are_written() -> None:
    assert read_axes(AXES, TEXT) == AXES
    assert read_axes({"input_ids": [1]}, TEXT) == {"input_ids": {1: "input_ids_1"}}
    assert read_axes({"input": {"2": "height"}}, torch.zeros(2, 3, 4, 4)) == {
        "input": {2: "height"}
    }


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"ids": {1: "sequence"}}, "no input 'ids'.*input_ids"),
        ({"input_ids": {0: "batch"}}, "always free"),
        ({"input_ids": {2: "sequence"}}, "names axis 2"),
        ("sometimes", "or `auto`, got 'sometimes'"),
    ],
)
def test_axes_that_are_not_there_are_refused(given: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        read_axes(given, TEXT)


def test_axes_of_one_name_have_one_size() -> None:
    unlike = {**TEXT, "attention_mask": torch.ones(2, 5)}
    with pytest.raises(InputError, match="'sequence' is 6 long in one input and 5"):
        sizes_of(unlike, AXES)


def test_inputs_are_cut_and_repeated() -> None:
    assert sizes_of(TEXT, AXES) == {"sequence": 6}
    short = resized(TEXT, AXES, {"sequence": 2})
    assert short["input_ids"].tolist() == [[0, 1], [6, 7]]
    long = resized(TEXT, AXES, {"sequence": 8})
    assert long["input_ids"].tolist()[0] == [0, 1, 2, 3, 4, 5, 0, 1]
    assert long["attention_mask"].shape == (2, 8)


class AtLeast(nn.Module):
    """Takes texts of at least so many tokens."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if not self.least <= input_ids.shape[1] <= self.most:
            raise ValueError("not this long")
        return (input_ids * attention_mask).float()


def test_another_size_that_the_model_takes() -> None:
    sizes = [
        None
        if (found := other_size(AtLeast(*range_), TEXT, AXES)) is None
        else found["input_ids"].shape[1]
        for range_ in ((1, 6), (4, 20), (6, 6))
    ]
    assert sizes == [3, 12, None]


def test_what_might_be_free() -> None:
    assert candidates(TEXT) == [AXES]
    images = candidates(torch.zeros(2, 3, 8, 8))
    assert images == [{"input": {2: "height"}}, {"input": {3: "width"}}]
    assert candidates(torch.zeros(2, 5)) == []
    assert candidates((torch.zeros(2, 7, 4), torch.zeros(2, 9).long())) == [
        {"input": {1: "sequence"}},
        {"input": {2: "sequence_4"}},
        {"input_1": {1: "sequence_9"}},
    ]

"""Calling models and naming what goes in and comes out, against calls written by hand."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InputError, UnsupportedModel
from autocompress.task.calling import (
    Flat,
    call,
    call_or_refuse,
    input_names,
    output_names,
    rebuild,
    without_cache,
)
from autocompress.task.nested import tensors
from autocompress.task.selection import Selection


class Adds(nn.Module):
    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return a + scale * b


class Sums(nn.Module):
    """Takes several tensors in one list."""

    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).sum(0)


@dataclass
class Answer:
    logits: Any
    past_key_values: Any = None


A, B = torch.arange(6.0).view(2, 3), torch.ones(2, 3)


@pytest.mark.parametrize("inputs", [(A, B), {"b": B, "a": A}, OrderedDict(a=A, b=B)])
def test_positions_and_keywords(inputs: Any) -> None:
    assert torch.equal(call(Adds(), inputs), A + B)


@pytest.mark.parametrize("inputs", [[A, B], ([A, B],), {"parts": [A, B]}])
def test_a_list_is_one_argument(inputs: Any) -> None:
    assert torch.equal(call(Sums(), inputs), A + B)


@pytest.mark.parametrize("kind", [dict, OrderedDict, Answer])
def test_what_is_kept_for_a_next_call_is_no_answer(kind: Any) -> None:
    class Speaks(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return kind(logits=x, past_key_values=((x, x), (x, x)))

    found = call(Speaks(), A)
    assert type(found) is kind
    assert len(tensors(found)) == 1
    assert torch.equal(tensors(found)[0], A)


def test_names_of_inputs_and_outputs() -> None:
    assert input_names(A) == ["input"]
    assert input_names((A, B, A)) == ["input", "input_1", "input_2"]
    assert input_names({"ids": A, "mask": B}) == ["ids", "mask"]
    assert input_names((A, {"mask": B})) == ["input", "input_1.mask"]
    assert output_names(A) == ["output"]
    assert output_names({"logits": A, "heads": (A, B)}) == ["logits", "heads.0", "heads.1"]
    assert output_names({"ids": A, "logits": B}, ["ids"]) == ["ids_out", "logits"]


def test_an_answer_is_rebuilt_from_arrays() -> None:
    like = {"logits": A, "aux": [B, "a text"]}
    found = rebuild(like, [(2 * A).numpy(), (3 * B).numpy()])
    assert torch.equal(found["logits"], 2 * A)
    assert torch.equal(found["aux"][0], 3 * B)
    assert found["aux"][1] == "a text"
    assert torch.equal(rebuild(None, [A.numpy()]), A)
    assert isinstance(rebuild(None, [A.numpy(), B.numpy()]), tuple)
    with pytest.raises(InputError, match="2 tensors was given 1"):
        rebuild(like, [A.numpy()])


def test_a_flat_model_takes_and_gives_tensors() -> None:
    class Nested(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], more: Tensor) -> dict[str, Any]:
            return {"sum": pair[0] + pair[1], "rest": [more, None]}

    flat = Flat(Nested(), {"more": A, "pair": (A, B)})
    found = flat(3 * A, A, B)
    assert [t.tolist() for t in found] == [(A + B).tolist(), (3 * A).tolist()]
    assert [flat.path(n) for n, _ in Flat(nn.Sequential(nn.ReLU()), A).named_modules()][1:] == [
        "",
        "0",
    ]


def test_columns_that_a_model_does_not_take_are_left_out() -> None:
    batch = {"a": A, "b": B, "index": torch.arange(2)}
    selection = Selection.of(Adds(), batch)
    assert selection is not None
    assert torch.equal(call(Adds(), selection(batch)), A + B)
    assert "index" in selection.notes[0]
    assert pickle.loads(pickle.dumps(selection)) == selection
    assert Selection.of(Adds(), {"a": A, "b": B}) is None
    assert Selection.of(Adds(), (A, B)) is None
    alone = Selection.of(nn.ReLU(), {"image": A})
    assert alone is not None
    assert alone({"image": A}) is A
    with pytest.raises(InputError, match=r"takes a, b, scale.*has x, y"):
        Selection.of(Adds(), {"x": A, "y": B})


def test_a_language_model_is_told_to_keep_nothing() -> None:
    @dataclass
    class Config:
        use_cache: bool = True

    model = nn.Sequential(nn.ReLU())
    model[0].config = Config()
    without_cache(model)
    assert model[0].config.use_cache is False


class Casts(nn.Module):
    """A double model whose forward says so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.double())


def test_a_number_type_that_a_forward_names_is_told_with_the_remedy() -> None:
    copied = Casts().float()  # as a study works on it
    with pytest.raises(UnsupportedModel, match=r"run as a copy in float32.*weight\.dtype"):
        call_or_refuse(copied, torch.randn(2, 3))

"""Nested structures against plain Python: what goes in comes out, in order."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.task.nested import (
    batch_size,
    concat,
    map_tensors,
    named_tensors,
    take,
    tensors,
    with_tensors,
)

Pair = namedtuple("Pair", ["first", "second"])  # the kind is what is tested


@dataclass
class Answer:
    logits: Any
    aux: Any = None


class HuggingFaceLike(OrderedDict):  # type: ignore[type-arg]  # as transformers has it
    """Attributes beside keys, as transformers' outputs have."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def wrap(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pairs = st.tuples(children, children)
    keyed = st.dictionaries(st.sampled_from("abc"), children, min_size=1)
    return st.one_of(
        pairs,
        pairs.map(list),
        pairs.map(lambda p: Pair(*p)),
        pairs.map(lambda p: Answer(*p)),
        keyed,
        keyed.map(HuggingFaceLike),
        keyed.map(UserDict),
    )


LEAVES = st.one_of(
    st.integers(0, 9).map(lambda i: torch.full((3, 2), float(i))), st.none(), st.just("text")
)
NESTED = st.recursive(LEAVES, wrap, max_leaves=8)


def plain(value: Any) -> Any:
    """The same as nested lists of numbers, types named."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Answer):
        return ["Answer", plain(value.logits), plain(value.aux)]
    if isinstance(value, dict | UserDict):
        return [type(value).__name__, *((k, plain(v)) for k, v in value.items())]
    if isinstance(value, tuple | list):
        return [type(value).__name__, *map(plain, value)]
    return value


@given(NESTED)
def test_a_structure_is_rebuilt_as_it_was(value: Any) -> None:
    found = tensors(value)
    assert plain(with_tensors(value, found)) == plain(value)
    assert [t for _, t in named_tensors(value)] == found or len(found) == 0
    doubled = map_tensors(lambda t: 2 * t, value)
    assert [t.tolist() for t in tensors(doubled)] == [(2 * t).tolist() for t in found]


@given(NESTED)
def test_joining_and_taking_are_inverse(value: Any) -> None:
    if not tensors(value):
        return
    joined = concat([value, map_tensors(lambda t: t + 1, value)])
    assert batch_size(joined) == 6
    assert plain(take(joined, slice(0, 3))) == plain(value)
    for tensor, own in zip(tensors(take(joined, torch.tensor([3]))), tensors(value), strict=True):
        assert tensor.tolist() == (own[:1] + 1).tolist()


def test_paths_are_keys_fields_and_places() -> None:
    one = torch.zeros(2)
    value = {"logits": one, "heads": [one, Answer(one, (one,))], "none": None}
    assert [name for name, _ in named_tensors(value)] == [
        "logits",
        "heads.0",
        "heads.1.logits",
        "heads.1.aux.0",
    ]
    assert named_tensors(one)[0][0] == ""


def test_what_does_not_fit_is_refused() -> None:
    one = torch.zeros(2, 3)
    with pytest.raises(InputError, match="built alike"):
        concat([{"a": one}, {"b": one}])
    with pytest.raises(InputError, match="do not fit together"):
        concat([one, torch.zeros(2, 4)])
    with pytest.raises(InputError, match="same first axis"):
        batch_size((one, torch.zeros(3)))
    with pytest.raises(InputError, match="2 tensors was given 1"):
        with_tensors([one, one], [one])

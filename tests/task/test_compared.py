"""Answers that differ are found whatever stands beside the difference; rounding is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.task.compared import difference

A = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([0, 0, 0, 0, 0, 1]).bool()
HALF = torch.tensor([0, 0, 0, 1, 1, 1]).bool()
LEAST = torch.finfo(torch.float64).min
NAN = torch.full((4, 6), float("nan"))


def shifted(x: Tensor, mask: Tensor, by: float) -> Tensor:
    """A mask that is added, as attention's are."""
    return x + torch.where(mask, by, 0.0)


OTHERS: dict[str, tuple[Tensor, Tensor]] = {
    "values": (A, A + 1e-4),
    "one value": (A, torch.cat([A[:3], A[3:] + 1e-3])),
    "integers": (A.argmax(1), 5 - A.argmax(1)),
    "truths": (A > 0, A <= 0),
    "complex": (A.to(torch.complex128), A.to(torch.complex128) + 1e-3j),
    "shape": (A, A[:2]),
    "kind": (A, A.long()),
    **{
        f"beside {fill}": (A.masked_fill(MASK, fill), (A + 1e-3).masked_fill(MASK, fill))
        for fill in (-1e9, LEAST, float("-inf"), float("nan"))
    },
    "beside as many sentinels": (
        A.masked_fill(HALF, -1e9),
        (A + 1e-3).masked_fill(HALF, -1e9),
    ),
    "beside an added mask": (shifted(A, MASK, -1e9), shifted(A + 1e-3, MASK, -1e9)),
    "infinite elsewhere": (A.masked_fill(MASK, float("inf")), A.masked_fill(HALF, float("inf"))),
    "the other infinity": (A.masked_fill(MASK, float("inf")), A.masked_fill(MASK, float("-inf"))),
    "nothing finite": (NAN, NAN),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_is_said(name: str) -> None:
    found, wanted = OTHERS[name]
    assert difference([found], [wanted], 1e-8)
    assert difference([A, found], [A, wanted], 1e-8).startswith("output 2: ")


ALIKE: dict[str, Tensor] = {
    "values": A,
    "sentinels": A.masked_fill(MASK, -1e9),
    "infinities": A.masked_fill(MASK, float("-inf")),
    "probabilities": (20 * A).softmax(1),
    "constants": torch.ones(4, 6, dtype=torch.float64),
    "nothing": torch.zeros(0, 6, dtype=torch.float64),
    "complex": A.to(torch.complex128) * 1j,
}


@pytest.mark.parametrize("name", ALIKE)
def test_rounding_is_no_difference(name: str) -> None:
    value = ALIKE[name]
    noise = 1 + 1e-13 * torch.randn(value.shape, dtype=torch.float64)
    assert not difference([value * noise], [value], 1e-8)
    assert not difference([value], [value], 1e-8)


def test_what_cancels_may_differ_by_what_rounding_leaves() -> None:
    one = torch.tensor([[1e-7], [3e-7]])
    assert difference([one], [2 * one], 1e-3)
    assert not difference([one], [2 * one], 1e-3, least=1e-2)
    assert difference([one], [one + 1e-3], 1e-3, least=1e-2)


def test_another_number_of_outputs() -> None:
    assert difference([A], [A, A], 1e-8) == "1 outputs in place of 2"

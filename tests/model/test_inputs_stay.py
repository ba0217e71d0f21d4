"""A forward that writes into its inputs is refused, and the data are as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import UnsupportedModel
from autocompress.model.inventory import take_inventory


class Writing(nn.Module):
    """Does something to its inputs before it reads them."""

    def __init__(self, first: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.a, self.b = first, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(self.first(x))))


def _part(x: Tensor) -> Tensor:
    x[:, 0] -= 1.0
    return x


def _named(x: Tensor) -> Any:
    return {"x": x}


@pytest.mark.parametrize("first", [lambda x: x.div_(255), _part, nn.ReLU(inplace=True)])
@pytest.mark.parametrize("wrap", [lambda x: x, _named])
def test_inputs_that_are_written_to_are_refused(
    first: Callable[[Tensor], Tensor], wrap: Callable[[Tensor], Any]
) -> None:
    x = torch.randn(4, 6)
    before = x.clone()
    with pytest.raises(UnsupportedModel, match=r"in place.*clone"):
        take_inventory(Writing(first).eval(), wrap(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("first", [lambda x: x.clone().div_(255), lambda x: x / 255])
def test_a_copy_may_be_written_to(first: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6)
    before = x.clone()
    found = take_inventory(Writing(first).eval(), x)
    assert [layer.name for layer in found.layers] == ["a", "b"]
    assert [group.producers for group in found.channel_groups] == [("a",)]
    assert torch.equal(x, before)

"""One layer as two that run one after another, whatever class it is of; a table of rows, too.

What a subclass adds before its product goes with the first half, what it adds afterwards with the
second; whether either works is tried.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autocompress.errors import explained
from autocompress.model.usage import CONV, base, drawn_inputs, evaluated, inherited, like, usage

Half = Literal["first", "last"]
"""The half that stays of the layer's class; the other one is a plain layer of torch's."""


def split(layer: Any, first: Tensor, last: Tensor, keeper: Half) -> list[Any]:
    """Two layers in place of one.

    Args:
        layer: a convolution with one group, or a linear layer; not changed.
        first: ``(rank, inputs, *kernel)``.
        last: ``(outputs, rank)``.
        keeper: which half is a copy of the layer; that with the bias is always the last.
    """
    rank, bias = len(first), layer.bias
    if isinstance(layer, nn.Linear):
        if keeper == "first":
            return [like(layer, first, None, out_features=rank), plain_linear(last, bias)]
        return [plain_linear(first, None), like(layer, last, bias, in_features=rank)]
    ones = (1,) * len(layer.kernel_size)
    last = last.reshape(*last.shape, *ones)
    if keeper == "first":
        return [like(layer, first, None, out_channels=rank), plain_conv(layer, last, bias)]
    options: dict[str, Any] = {
        name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")
    }
    sizes = {"kernel_size": ones, "stride": ones, "padding": (0,) * len(ones), "dilation": ones}
    return [
        plain_conv(layer, first, None, **options),
        like(layer, last, bias, in_channels=rank, **sizes),
    ]


def keeper(layer: Any) -> Half | None:
    """The half that must be of a layer's class, so that both compute what it does.

    Returns:
        ``None`` where neither works: the layer does something between its inputs and outputs that
        two layers cannot.
    """
    if usage(layer).plain:
        return "first"
    weight = layer.weight.detach()
    drawn = torch.Generator().manual_seed(0)
    row = torch.randn(1, *weight.shape[1:], generator=drawn) * weight.std()
    share = torch.randn(len(weight), 1, generator=drawn)
    # one channel more than there are outputs: what is made for their number does not go unnoticed
    first = torch.cat([weight - (share @ row.flatten(1)).view_as(weight), row])
    last = torch.cat([torch.eye(len(weight)), share], 1)
    inputs = drawn_inputs(layer)
    halves: tuple[Half, ...] = ("first", "last")
    for half in halves:
        try:
            with torch.no_grad(), evaluated(layer):
                made = nn.Sequential(*split(layer, first, last, half)).eval()
                wanted, found = layer.forward(inputs), made(inputs)
        except Exception:  # a forward of anyone's, with a weight of another shape
            continue
        spread = 1e-4 * max(1.0, float(wanted.abs().max()))
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-3, atol=spread):
            return half
    return None


def hooked(layer: nn.Module) -> bool:
    """Whether hooks run with a layer: two in its place would run each of them twice, or on half."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def splittable(layer: Any) -> bool:
    """Whether two layers can stand in a layer's place."""
    return keeper(layer) is not None


def why_no_product(table: Any) -> str:
    """Why a smaller table and a linear layer cannot stand in a table's place; empty where they can.

    Args:
        table: an ``nn.Embedding`` or ``nn.EmbeddingBag``; sums and means of rows can be mapped
            as well as rows, weighted or not.
    """
    if not isinstance(table.weight, nn.Parameter):
        return "its weight is computed from other tensors"
    if table.max_norm is not None:
        return "its rows are scaled to `max_norm` where they are read"
    if getattr(table, "mode", "") == "max":
        return "the largest of several rows is no product"
    if inherited(table):
        return ""
    weight = table.weight.detach()
    drawn = torch.Generator().manual_seed(0)
    # one column more than there are: what is made for their number does not go unnoticed
    wider = torch.cat([weight.flip(1), torch.randn(len(weight), 1, generator=drawn)], 1)
    back = torch.cat([torch.eye(weight.shape[1]).flip(1), torch.zeros(weight.shape[1], 1)], 1)
    ids = torch.randint(len(weight), (3, 5), generator=drawn)
    kind = type(table).__name__
    try:
        with torch.no_grad(), evaluated(table):
            wanted, found = table.forward(ids), with_rows(table, wider).eval().forward(ids) @ back.T
    except Exception as error:  # a forward of anyone's, called as it may not want to be called
        return f"{kind} cannot be tried alone: {explained(error)}"
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4, atol=1e-6):
        return f"{kind} does more than pick rows"
    return ""


def with_rows(table: Any, weight: Tensor) -> Any:
    """A copy of a table, whatever class it is of, with other rows.

    Args:
        table: not changed. All else that it holds is copied.
        weight: ``(rows, width)`` of any width.
    """
    made = copy.deepcopy(table, {id(table.weight): nn.Parameter(weight.detach().clone())})
    made.embedding_dim = weight.shape[1]
    return made


def plain_linear(weight: Tensor, bias: Tensor | None) -> Any:
    """A linear layer of torch's own class with this weight."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _filled(made, weight, bias)


def plain_conv(layer: Any, weight: Tensor, bias: Tensor | None, **options: Any) -> Any:
    """A convolution of torch's own class with this weight, not padded unless told.

    Args:
        layer: of as many axes.
        weight, bias: of the new one.
        **options: of its class.
    """
    own = base(layer)
    assert own is not None
    assert issubclass(own, CONV)
    outputs, inputs, *kernel = weight.shape
    made = own(inputs, outputs, tuple(kernel), bias=bias is not None, **options)
    return _filled(made, weight, bias)


@torch.no_grad()
def _filled(made: Any, weight: Tensor, bias: Tensor | None) -> Any:
    made.weight.copy_(weight)
    if bias is not None:
        made.bias.copy_(bias)
    return made

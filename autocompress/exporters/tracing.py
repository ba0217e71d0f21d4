"""How a model runs while an exporter watches: with what a trace would take for constants kept."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from autocompress.model.plain_operators import PlainOperators


@contextmanager
def watched() -> Iterator[None]:
    """For the time of an export."""
    with ExitStack() as stack:
        # the user's own operators are in no runtime: what stands for them is exported
        stack.enter_context(PlainOperators(all_of_them=True))
        stack.enter_context(_lengths_as_sizes())
        stack.enter_context(_divided_projections())
        yield


@contextmanager
def _lengths_as_sizes() -> Iterator[None]:
    """Let ``len(x)`` be ``x.shape[0]``: Python's own gives a number, which a file keeps for ever.

    A parameter's length is a number in any case.
    """
    plain = builtins.len

    def length(of: Any) -> Any:
        sized = isinstance(of, Tensor) and not isinstance(of, nn.Parameter) and of.dim()
        return of.shape[0] if sized else plain(of)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain


@contextmanager
def _divided_projections() -> Iterator[None]:
    """Let torch's attention divide its one weight into three where keys are values, not queries.

    Of itself it divides the weight at the width of the query, which a trace takes for a size that
    only the input tells: no weight is then a constant that could be stored as integers.
    """
    torch_functions: Any = functional  # whose private function it is
    packed = torch_functions._in_projection_packed

    def divided(
        q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor | None = None
    ) -> list[Tensor]:
        if q is k or k is not v:
            return packed(q, k, v, w, b)
        biases = (None, None, None) if b is None else b.chunk(3)
        return list(map(functional.linear, (q, k, v), w.chunk(3), biases))

    torch_functions._in_projection_packed = divided
    try:
        yield
    finally:
        torch_functions._in_projection_packed = packed

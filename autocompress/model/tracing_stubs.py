"""Tracing stubs: modules whose insides the dependency graph must not see.

The graph is read off autograd's. Window attentions and recurrent layers decompose into operations
that tie channels together which have nothing to do with each other; while the graph is traced, each
is one node of known width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

RECURRENT = (nn.LSTM, nn.GRU)


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention whose heads can be told apart.

    Torchvision's window attention is known by name, so that torchvision need not be imported.
    """
    return isinstance(module, nn.MultiheadAttention) or (
        windowed(module) and type(module).__name__ == "ShiftedWindowAttention"
    )


def windowed(module: nn.Module) -> bool:
    """Whether a module is a window attention of torchvision's, of either version of Swin."""
    kind = type(module)
    return kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__.startswith(
        "ShiftedWindowAttention"
    )


def inner_width(attention: Any) -> int:
    """Channels of all heads of a window attention together."""
    return int(attention.proj.in_features)


@contextmanager
def stubbed(model: nn.Module) -> Iterator[dict[type[nn.Module], Any]]:
    """Replace the forward of such modules; gives the pruners that tell the graph their widths.

    Window attentions call their linear layers as functions, which the graph takes for operations
    by element, and cut the image up by reshapes, whose index maps multiply: for Swin-T it never
    came to an end. What a group has to know is that the width stays as it is.
    """
    windows: list[Any] = [m for m in model.modules() if windowed(m)]
    usual = {kind.forward for kind in RECURRENT}
    cells: list[Any] = [m for m in model.modules() if type(m).forward in usual]
    patched = {m: vars(m)["forward"] for m in (*windows, *cells) if "forward" in vars(m)}
    for window in windows:
        window.forward = lambda x: 1.0 * x
    for cell in cells:
        cell.forward = _recurrence(cell)
    pruners: dict[type[nn.Module], Any] = dict.fromkeys(
        RECURRENT, _sizes(lambda m: m.input_size, _state_width)
    )
    pruners |= dict.fromkeys({type(w) for w in windows}, _sizes(inner_width, inner_width))
    try:
        yield pruners
    finally:
        for module in (*windows, *cells):
            del module.forward
        for module, forward in patched.items():
            module.forward = forward


class _Outputs(torch.autograd.Function):
    """Something of the shape of a recurrent layer's outputs, which depends on its inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, width: int) -> Tensor:
        return torch.ones(*x.shape[:-1], width, dtype=x.dtype, device=x.device)


class FinalStates(torch.autograd.Function):
    """Something of the shape of a recurrent layer's final states, which depends on its outputs."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape, dtype=outputs.dtype, device=outputs.device)


def _recurrence(cell: Any) -> Callable[..., Any]:
    """A forward in two steps that the graph can follow: inputs to outputs, outputs to states."""

    def forward(x: Any, hx: Any = None) -> Any:
        packed = isinstance(x, PackedSequence)
        data = x.data if packed else x
        # by its weight it is part of the graph also where it reads the model's input
        outputs = _Outputs.apply(data, cell.weight_ih_l0, _state_width(cell))
        slots = cell.num_layers * (1 + cell.bidirectional)
        batch = (int(x.batch_sizes[0]),) if packed else ()
        if not packed and x.dim() == 3:
            batch = (x.shape[0 if cell.batch_first else 1],)
        width = cell.proj_size or cell.hidden_size
        states = FinalStates.apply(outputs, (slots, *batch, width))
        if isinstance(cell, nn.LSTM):
            states = (states, FinalStates.apply(outputs, (slots, *batch, cell.hidden_size)))
        return (x._replace(data=outputs) if packed else outputs), states

    return forward


def _state_width(cell: Any) -> int:
    return int((cell.proj_size or cell.hidden_size) * (1 + cell.bidirectional))


def _sizes(inputs: Callable[[Any], int], outputs: Callable[[Any], int]) -> Any:
    """What the graph must know of a kind of module; slicing is ours."""
    import torch_pruning as tp

    class Sizes(tp.function.BasePruningFunc):  # type: ignore[misc]  # torch-pruning is untyped
        def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
            raise NotImplementedError("autocompress.techniques.prune slices these")

        # one of its own: the graph knows the sides of a layer by these functions
        def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
            return self.prune_out_channels(layer, idxs)

        def get_out_channels(self, layer: Any) -> int:
            return int(outputs(layer))

        def get_in_channels(self, layer: Any) -> int:
            return int(inputs(layer))

    return Sizes()

"""Slice the tensors of a module along the channels that go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autocompress.errors import PolicyError
from autocompress.model.attention import without_heads
from autocompress.model.sides import CallAxis, LayerSide, OwnAxis, Removals
from autocompress.model.sized_calls import correct_calls
from autocompress.model.tied import exchange
from autocompress.model.tracing_stubs import unfuse

_CONV = nn.modules.conv._ConvNd


def remove(model: nn.Module, removals: Removals) -> None:
    """Slice every module once; shapes shrink, nothing is masked.

    Args:
        model: changed in place.
        removals: as ``SlicingPlan.removals`` gives them.

    Raises:
        PolicyError: a module would keep nothing.
    """
    calls: dict[str, dict[CallAxis, Sequence[int]]] = {}
    unfuse(model)
    with _tied(model, removals):
        for (name, side), gone in removals.items():
            module = model.get_submodule(name)
            if isinstance(side, CallAxis):
                calls.setdefault(name, {})[side] = gone
            elif isinstance(side, OwnAxis):
                _slice_own(module, side, name, gone)
            elif side == "heads":
                exchange(model, {name: without_heads(module, gone, name)})
            else:
                _slice(module, name, side, gone)
    for name, sides in calls.items():
        correct_calls(model.get_submodule(name), sides)


def _slice(module: nn.Module, name: str, side: LayerSide, gone: Sequence[int]) -> None:
    if isinstance(module, _CONV):
        _slice_conv(module, name, side, gone)
    elif isinstance(module, nn.Linear):
        _slice_linear(module, name, side, gone)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        _slice_norm(module, name, gone)
    elif isinstance(module, nn.GroupNorm):
        _slice_group_norm(module, name, gone)
    elif isinstance(module, nn.LSTM | nn.GRU):
        _slice_recurrent(module, name, side, gone)
    else:
        raise PolicyError(f"{name!r} ({type(module).__name__}) cannot be pruned.")


@contextmanager
def _tied(model: nn.Module, removals: Removals) -> Iterator[None]:
    """Parameters that several modules hold stay one, after all were sliced."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in {model.get_submodule(name) for name, _ in removals}:
        for key, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, key))
    yield
    for (first, key), *others in (found for found in places.values() if len(found) > 1):
        for module, other in others:
            setattr(module, other, getattr(first, key))


def _slice_own(module: nn.Module, side: OwnAxis, name: str, gone: Sequence[int]) -> None:
    """An axis of a parameter or buffer of the module's own."""
    tensor: Tensor = getattr(module, side.attribute)
    kept = _kept(tensor.shape[side.axis], gone, f"{name}.{side.attribute}").to(tensor.device)
    if isinstance(tensor, nn.Parameter):
        setattr(module, side.attribute, _take(tensor, kept, side.axis))
    else:
        setattr(module, side.attribute, tensor.index_select(side.axis, kept))


def _kept(size: int, gone: Sequence[int], name: str) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[list(gone)] = False
    if not bool(mask.any()):
        raise PolicyError(f"Pruning must leave at least one channel, {name!r} would keep none.")
    return mask.nonzero().flatten()


def _take(parameter: Tensor, kept: Tensor, dim: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, kept), parameter.requires_grad)


def _slice_conv(
    module: nn.modules.conv._ConvNd, name: str, side: LayerSide, gone: Sequence[int]
) -> None:
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if side in ("out", "both"):
        kept = _kept(module.out_channels, gone, name)
        rows, dim = kept, 0
        if transposed and side == "out":
            # every group loses the same places; the weight holds one group's outputs
            rows, dim = kept[: len(kept) // module.groups], 1
        module.weight = _take(module.weight, rows, dim)
        if module.bias is not None:
            module.bias = _take(module.bias, kept, 0)
        module.out_channels = len(kept)
        if side == "both":  # depthwise: the inputs are the outputs
            module.in_channels = module.groups = len(kept)
    else:
        kept = _kept(module.in_channels, gone, name)
        if module.groups > 1 and transposed:
            module.in_channels = len(kept)
        elif module.groups > 1:
            # every group loses the same places; the weight holds one group's inputs
            kept = kept[: len(kept) // module.groups]
            module.in_channels = len(kept) * module.groups
        else:
            module.in_channels = len(kept)
        module.weight = _take(module.weight, kept, 0 if transposed else 1)


def _slice_linear(module: nn.Linear, name: str, side: LayerSide, gone: Sequence[int]) -> None:
    if side == "out":
        kept = _kept(module.out_features, gone, name)
        module.weight = _take(module.weight, kept, 0)
        if module.bias is not None:
            module.bias = _take(module.bias, kept, 0)
        module.out_features = len(kept)
    else:
        kept = _kept(module.in_features, gone, name)
        module.weight = _take(module.weight, kept, 1)
        module.in_features = len(kept)


def _slice_norm(module: nn.modules.batchnorm._NormBase, name: str, gone: Sequence[int]) -> None:
    """Batch and instance norms."""
    kept = _kept(module.num_features, gone, name)
    for key in ("weight", "bias"):
        parameter = getattr(module, key)
        if parameter is not None:
            setattr(module, key, _take(parameter, kept, 0))
    for key in ("running_mean", "running_var"):
        buffer = getattr(module, key)
        if buffer is not None:
            setattr(module, key, buffer.index_select(0, kept))
    module.num_features = len(kept)


def _slice_group_norm(module: nn.GroupNorm, name: str, gone: Sequence[int]) -> None:
    """Whole groups go: the others are normalized as before."""
    kept = _kept(module.num_channels, gone, name)
    for key in ("weight", "bias"):
        if getattr(module, key) is not None:
            setattr(module, key, _take(getattr(module, key), kept, 0))
    module.num_groups = module.num_groups * len(kept) // module.num_channels
    module.num_channels = len(kept)


def _slice_recurrent(
    module: nn.LSTM | nn.GRU, name: str, side: LayerSide, gone: Sequence[int]
) -> None:
    """Every gate, direction and stacked layer loses the same hidden units."""
    directions = ("", "_reverse") if module.bidirectional else ("",)
    if side == "in":
        kept = _kept(module.input_size, gone, name)
        for direction in directions:
            _shrink(module, f"weight_ih_l0{direction}", kept, 1)
        module.input_size = len(kept)
        return
    # the outputs are the first direction's units, then the second's
    kept = _kept(module.hidden_size, [i for i in gone if i < module.hidden_size], name)
    outputs = torch.cat([kept + i * module.hidden_size for i in range(len(directions))])
    gates = len(module.get_parameter("weight_ih_l0")) // module.hidden_size
    rows = torch.cat([kept + gate * module.hidden_size for gate in range(gates)])
    for layer in range(module.num_layers):
        for direction in directions:
            end = f"l{layer}{direction}"
            for key in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") * module.bias)):
                _shrink(module, f"{key}_{end}", rows, 0)
            _shrink(module, f"weight_hh_{end}", kept, 1)
            if layer > 0:
                _shrink(module, f"weight_ih_{end}", outputs, 1)
    module.hidden_size = len(kept)


def _shrink(module: nn.Module, key: str, kept: Tensor, dim: int) -> None:
    setattr(module, key, _take(getattr(module, key), kept, dim))

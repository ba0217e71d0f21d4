"""What stands in a removed layer's place: it gives zeros that vanish where they are added.

The forward of a model stays as it is. A layer that is gone gives ``Nothing``, which goes through
what follows as zeros of the right shape would; ``x + Nothing`` is ``x``, so that neither the branch
nor the addition is in an exported graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.model.tied import exchange
from autocompress.model.tracing_stubs import is_attention
from autocompress.model.usage import CELLS, CONV, TRANSPOSED, paddings

_ADDS = {"add", "iadd", "radd"}
_TAKES = {"sub", "isub"}
_IN_PLACE = {"add_", "__iadd__", "sub_", "__isub__"}
_SCALES = {"mul", "multiply", "imul", "rmul", "matmul", "rmatmul", "bmm"}
_KEEPS = {
    *("div", "divide", "true_divide", "truediv", "itruediv", "neg", "negative", "clone", "detach"),
    *("dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous", "to"),
    *("float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "identity"),
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "expand"),
    *("squeeze", "unsqueeze", "roll", "getitem", "narrow", "select", "chunk", "split", "unbind"),
    *("swapaxes", "index_select", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle"),
    *("relu", "relu6", "leaky_relu", "gelu", "silu", "mish", "hardswish", "tanh", "elu", "selu"),
    *("mean", "sum", "interpolate", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d"),
    *("avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "prelu", "hardtanh", "channel_shuffle"),
}
"""Functions of one tensor that give zeros for zeros."""


class Nothing:
    """Zeros that are known to be zeros; no tensor, but torch's functions take it for one.

    Args:
        value: zeros of the shape that would be there.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What a function of torch gives, where some of its arguments are nothing."""
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", "")).strip("_")
        first = args[0] if args else None
        second = args[1] if len(args) > 1 else kwargs.get("other")
        if name in _ADDS | _TAKES and isinstance(second, Nothing) and isinstance(first, Tensor):
            return first if func.__name__ in _IN_PLACE else first.clone()
        if name in _ADDS and isinstance(second, Tensor) and "alpha" not in kwargs:
            return second.clone()
        found = func(*_plain(args), **_plain(kwargs))
        zeros = name in _SCALES or (name in _KEEPS and isinstance(first, Nothing))
        both = name in _ADDS | _TAKES and isinstance(first, Nothing) and isinstance(second, Nothing)
        return _marked(found) if zeros or both else found

    def __getattr__(self, name: str) -> Any:
        """Sizes are those of the zeros; methods of tensors give nothing where they keep it so."""
        if name == "value":  # asked for by a copy before it has any
            raise AttributeError(name)
        found = getattr(self.value, name)
        return self._method(getattr(Tensor, name)) if callable(found) else found

    def _method(self, func: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.__torch_function__(func, (), (self, *args), kwargs)


def _operator(name: str) -> Callable[..., Any]:
    def of(self: Nothing, *args: Any) -> Any:
        return Nothing.__torch_function__(getattr(Tensor, name), (), (self, *args))

    return of


for _name in (
    *("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__", "__rmul__"),
    *("__imul__", "__truediv__", "__rtruediv__", "__itruediv__", "__matmul__", "__rmatmul__"),
    *("__neg__", "__pow__", "__getitem__", "__len__", "__iter__", "__eq__", "__lt__", "__gt__"),
):
    setattr(Nothing, _name, _operator(_name))


def _plain(value: Any) -> Any:
    """The same with zeros in place of nothing."""
    if isinstance(value, Nothing):
        return value.value
    if isinstance(value, tuple | list):
        return (
            type(value)(_plain(part) for part in value) if type(value) in (tuple, list) else value
        )
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value


def _marked(found: Any) -> Any:
    if isinstance(found, Tensor):
        return Nothing(found)
    return tuple(map(_marked, found)) if isinstance(found, tuple | list) else found


class Absent(nn.Module):
    """Stands where a layer was.

    Args:
        outputs: channels that it would give; ``None`` gives what comes in.
        axis: of these channels, from the end; 0 where they are behind all others, a new axis.
        sizes: from an input's size along each spatial axis to an output's; empty where it stays.
        answer: ``tensor``; ``attention`` gives ``None`` beside it, ``lstm`` two states, ``states``
            one.
        passes: what comes in is passed on, in place of nothing.
    """

    def __init__(
        self,
        outputs: int | None = None,
        axis: int = -1,
        sizes: tuple[tuple[int, int, int], ...] = (),
        answer: str = "tensor",
        passes: bool = False,
    ) -> None:
        super().__init__()
        self.outputs, self.axis, self.sizes, self.answer = outputs, axis, sizes, answer
        self.passes = passes

    def extra_repr(self) -> str:
        """What would come out."""
        return f"outputs={self.outputs}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing, of the shape that would be there."""
        given = (*args, *kwargs.values())
        x = next(value for value in given if isinstance(value, Tensor | Nothing))
        value = x.value if isinstance(x, Nothing) else x
        shape = list(value.shape)
        if self.outputs is not None and self.axis == 0:
            shape.append(self.outputs)
        elif self.outputs is not None:
            shape[self.axis] = self.outputs
        for i, (before, back, step) in enumerate(reversed(self.sizes)):
            shape[-1 - i] = (shape[-1 - i] + before - back) // step + 1
        kind = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        if self.passes:
            found, zero = x, value.new_zeros(())
        else:
            zeros = torch.zeros(shape, dtype=kind, device=value.device)
            found, zero = Nothing(zeros), zeros.new_zeros(())
        if self.answer == "attention":
            return found, None
        if self.answer == "lstm":
            return found, (Nothing(zero), Nothing(zero))
        return (found, Nothing(zero)) if self.answer == "states" else found


def absent(module: Any) -> Absent | None:
    """What can stand in a module's place; ``None`` for a layer of an unknown kind.

    Args:
        module: a layer, or anything that gives as large a tensor as it takes.
    """
    found = _absent(module)
    if found is not None:
        # a forward may ask its parts for their settings
        plain = (bool, int, float, str, tuple, type(None))
        own = vars(found)
        more = {k: v for k, v in vars(module).items() if k not in own and isinstance(v, plain)}
        own.update(more)
        for name in (*module._parameters, *module._buffers):
            found.register_parameter(name, None)
    return found


def _absent(module: Any) -> Absent | None:
    if is_attention(module):
        return Absent(answer="attention" if isinstance(module, nn.MultiheadAttention) else "tensor")
    if isinstance(module, nn.RNNBase):
        width = (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
        return Absent(width, answer="lstm" if isinstance(module, nn.LSTM) else "states")
    if isinstance(module, nn.Embedding):
        return Absent(module.embedding_dim, axis=0)
    if isinstance(module, nn.Linear):
        return Absent(module.out_features)
    if isinstance(module, (TRANSPOSED, nn.EmbeddingBag, *CELLS)):
        return None
    return _absent_conv(module) if isinstance(module, CONV) else Absent()


def _absent_conv(module: Any) -> Absent:
    """A convolution's, whose spatial axes shrink or grow."""
    axis = -1 - len(module.kernel_size)
    sizes = []
    for k, d, s, (before, after) in zip(
        module.kernel_size, module.dilation, module.stride, paddings(module), strict=True
    ):
        sizes.append((before + after, d * (k - 1) + 1, s))
    return Absent(module.out_channels, axis, tuple(sizes))


def leave_out(model: nn.Module, names: Iterable[str], *, passes: bool = False) -> None:
    """Take modules out of a model, in place.

    Args:
        model: changed.
        passes: what comes into them is passed on; else what they give adds nothing.
        names: of layers, and of modules that give as large a tensor as they take; layers of an
            unknown kind stay, and what they give is read by nobody.
    """
    for name in names:
        stub = absent(model.get_submodule(name))
        if stub is not None:
            stub.passes = passes
            exchange(model, {name: stub})

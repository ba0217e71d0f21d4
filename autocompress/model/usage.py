"""How a layer's own forward uses its weight: seen by running it, not told by its class.

Subclasses of torch's layers pad their inputs, normalize their outputs, compute their weights or add
side branches. Most techniques work on such a layer as long as its weight goes, as it is, into one
product; what is done to the product's inputs and outputs stays with the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.errors import explained

CONV = nn.modules.conv._ConvNd
TRANSPOSED = nn.modules.conv._ConvTransposeNd
CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
TABLES = (nn.Embedding, nn.EmbeddingBag)

_LAYER_PRODUCTS = {
    "linear",
    *(f"conv{n}d" for n in (1, 2, 3)),
    *(f"conv_transpose{n}d" for n in (1, 2, 3)),
}
_PRODUCTS = {
    *_LAYER_PRODUCTS,
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "baddbmm", "addbmm"),
    *("einsum", "bilinear", "tensordot", "inner", "scaled_dot_product_attention"),
}
_NOT_A_USE = (
    "new",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand",
    "data",
    "type_as",
)
"""Calls that take a tensor for its shape and number type only."""
_SPAN = 11
"""Random inputs are this much longer than a kernel reaches: odd, and no multiple of a stride."""


@dataclass(frozen=True)
class Product:
    """One product of a layer's forward.

    Args:
        name: of torch's function.
        inputs, weight, bias: what it was given.
        options: other arguments, by torch's names.
        output: what it gave.
    """

    name: str
    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    options: dict[str, Any]
    output: Tensor


class _Recorded(TorchFunctionMode):
    """Notes every product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            self.found.append((name, tuple(args), dict(kwargs or {}), output))
        return output


_ORDER = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": (
        *("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
    "linear": ("input", "weight", "bias"),
}


def _product(name: str, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Product:
    order = _ORDER[name.rstrip("123d")]
    found = {**dict(zip(order, args, strict=False)), **given}
    taken = [found.pop(key, None) for key in ("input", "weight", "bias")]
    return Product(name, taken[0], taken[1], taken[2], found, output)


def inherited(layer: nn.Module) -> bool:
    """Whether a layer's forward is that of torch's own class."""
    own = base(layer)
    kind = type(layer)
    if own is None or "forward" in vars(layer):
        return False
    same = kind.forward is own.forward
    if issubclass(own, CONV) and not issubclass(own, TRANSPOSED):
        same = same and kind._conv_forward is own._conv_forward  # type: ignore[attr-defined]  # of torch's convolutions
    return same


def base(layer: nn.Module) -> type[Any] | None:
    """Torch's own class that a layer is of; ``None`` where it is none but ``nn.Module``."""
    for kind in type(layer).__mro__:
        if kind.__module__.startswith("torch.nn.modules"):
            return None if kind is nn.Module else kind
    return None


@torch.no_grad()
def product(layer: nn.Module, inputs: Tensor) -> Product | None:
    """The one product of a layer that multiplies inputs with its weight, as it is.

    Args:
        layer: convolution or linear; its hooks are not run.
        inputs: of the layer.

    Returns:
        ``None`` where it makes no product, several, or one with another weight.
    """
    found, _ = _run(layer, inputs)
    return found if found is not None and found.weight is layer.weight else None


def _run(layer: nn.Module, inputs: Tensor) -> tuple[Product | None, Any]:
    """The only product of a layer's forward, if it is one of a layer, and what it returns."""
    with _Recorded() as seen:
        output = layer.forward(inputs)
    if len(seen.found) != 1 or seen.found[0][0] not in _LAYER_PRODUCTS:
        return None, output
    return _product(*seen.found[0]), output


@dataclass(frozen=True)
class Usage:
    """What a layer does beside its product.

    Args:
        direct: its weight goes, as it is, into its only product.
        before: its inputs are changed first, by more than its class's own padding.
        after: its outputs are changed afterwards.
        reason: why it is not ``direct``.
    """

    direct: bool = True
    before: bool = False
    after: bool = False
    reason: str = ""

    @property
    def plain(self) -> bool:
        """Whether the layer is its product, and nothing else."""
        return self.direct and not self.before and not self.after


def usage(layer: nn.Module) -> Usage:
    """How a convolution or linear layer uses its weight, tried on random inputs.

    Args:
        layer: not changed.
    """
    if not isinstance(layer.weight, nn.Parameter):
        return Usage(False, reason="its weight is computed from other tensors")
    if inherited(layer):
        return Usage()
    inputs = drawn_inputs(layer)
    try:
        with torch.no_grad(), evaluated(layer):
            found, output = _run(layer, inputs)
    except Exception as error:  # a forward of anyone's, called as it may not want to be called
        return Usage(False, reason=f"its forward cannot be tried alone: {explained(error)}")
    kind = type(layer).__name__
    if found is None:
        return Usage(False, reason=f"the forward of {kind} does more than multiply by its weight")
    if found.weight is not layer.weight:
        return Usage(False, reason=f"the forward of {kind} computes its weight")
    if found.bias is not layer.bias:
        return Usage(False, reason=f"the forward of {kind} computes its bias")
    after = not _equal(output, found.output)
    return Usage(before=not _equal(found.inputs, inputs), after=after)


def computed_layer(layer: nn.Module) -> nn.Module | None:
    """A plain layer in place of one that only computes its weight, or stores it transposed.

    Standardized weights (Qiao et al., 2019) and ``Conv1D`` of transformers are such.

    Returns:
        ``None`` where the layer does anything else.
    """
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):
        return _from_conv1d(layer)
    own = base(layer)
    if own is None or not issubclass(own, CONV | nn.Linear) or inherited(layer):
        return None
    made = None
    for seed in (0, 1):
        inputs = drawn_inputs(layer, seed)
        try:
            with torch.no_grad(), evaluated(layer):
                found, output = _run(layer, inputs)
        except Exception:
            return None  # what cannot be tried alone stays as it is, with the reason in `usage`
        if found is None or (found.weight is layer.weight and found.bias is layer.bias):
            return None
        if not _equal(found.inputs, inputs) or not _equal(output, found.output):
            return None
        made = made or _plain(layer, own, found)
        if not _equal(made(inputs), output):
            return None  # the weight depends on the input
    return made


def _plain(layer: Any, own: type[Any], found: Product) -> nn.Module:
    """A layer of torch's own class that does what a product did."""
    bias = found.bias is not None
    if issubclass(own, nn.Linear):
        made: Any = nn.Linear(found.weight.shape[1], found.weight.shape[0], bias)
    else:
        sizes = (layer.in_channels, layer.out_channels, tuple(found.weight.shape[2:]))
        made = own(*sizes, bias=bias, **found.options)
    made.weight = nn.Parameter(found.weight.detach().clone())
    if found.bias is not None:
        made.bias = nn.Parameter(found.bias.detach().clone())
    return made.train(layer.training)


def _from_conv1d(layer: Any) -> nn.Module | None:
    weight, bias = layer.weight, layer.bias
    made = nn.Linear(weight.shape[0], weight.shape[1], bias is not None)
    made.weight = nn.Parameter(weight.detach().t().contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    inputs = torch.randn(2, 3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.allclose(layer(inputs), made(inputs), atol=1e-5)
    return made.train(layer.training) if same else None


def like(layer: nn.Module, weight: Tensor, bias: Tensor | None, **sizes: Any) -> Any:
    """A copy of a layer with another weight and bias, whatever class it is of.

    The constructor of a subclass may ask for anything, so it is not called.

    Args:
        layer: convolution or linear; not changed. All else that it holds is copied.
        weight, bias: of the copy; ``None`` leaves it without a bias.
        **sizes: attributes that change, e.g. ``in_channels`` or ``kernel_size``.
    """
    held = layer.bias
    memo: dict[int, Any] = {id(layer.weight): nn.Parameter(weight.detach().clone())}
    if isinstance(held, Tensor) and bias is not None:
        memo[id(held)] = nn.Parameter(bias.detach().clone())
    made: Any = copy.deepcopy(layer, memo)
    if held is None and bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    elif bias is None:
        made.bias = None
    for name, value in sizes.items():
        setattr(made, name, value)
    if isinstance(made, CONV) and hasattr(made, "_reversed_padding_repeated_twice"):
        both = reversed(paddings(made))
        made._reversed_padding_repeated_twice = [side for pair in both for side in pair]
    return made


def paddings(layer: Any) -> list[tuple[int, int]]:
    """What a convolution adds before and behind each axis, words looked up."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        spans = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(side, side) for side in layer.padding]


def outputs_first(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight with one row per output channel.

    Args:
        layer: only transposed convolutions hold theirs another way: ``(inputs, outputs / groups,
            *kernel)``.
        weight: of the layer, or a tensor of its shape.
    """
    if not isinstance(layer, TRANSPOSED):
        return weight
    groups = weight.unflatten(0, (layer.groups, -1))
    return groups.transpose(1, 2).flatten(0, 1)


# ---- parameters used outside of their layer


@contextmanager
def uses_elsewhere(owners: dict[int, set[nn.Module]]) -> Iterator[dict[int, str]]:
    """While a model runs: which parameters are used by something that is not their layer.

    Args:
        owners: id of a parameter to the modules that hold it.

    Yields:
        Id of a parameter to the torch function that read it.
    """
    found: dict[int, str] = {}
    running: list[nn.Module] = []
    handles = []

    class Watching(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            if isinstance(output, Tensor):
                name = _called(func)
                for value in (*args, *(kwargs or {}).values()):
                    mine = owners.get(id(value)) if isinstance(value, Tensor) else None
                    if mine and not mine.intersection(running) and not name.startswith(_NOT_A_USE):
                        found.setdefault(id(value), name)
            return output

    def enter(module: nn.Module, args: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    for module in {m for mine in owners.values() for m in mine}:
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with Watching():
            yield found
    finally:
        for handle in handles:
            handle.remove()


def _called(func: Any) -> str:
    """Name of a torch function; of a property, the property's."""
    name = str(getattr(func, "__name__", func))
    return str(getattr(func.__self__, "__name__", name)) if name == "__get__" else name


# ---- random inputs


def drawn_inputs(layer: Any, seed: int = 0) -> Tensor:
    """Random inputs that fit a layer."""
    drawn = torch.Generator().manual_seed(seed)
    if isinstance(layer, CONV):
        spans = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        sizes = [span + _SPAN + 3 * axis for axis, span in enumerate(spans)]
        return torch.randn(2, layer.in_channels, *sizes, generator=drawn)
    return torch.randn(3, layer.in_features, generator=drawn)


@contextmanager
def evaluated(layer: nn.Module) -> Iterator[None]:
    """Eval mode, all parts of a layer set back afterwards."""
    before = [(module, module.training) for module in layer.modules()]
    layer.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6)

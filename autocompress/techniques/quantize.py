"""Quantization: integer grids, simulation in torch, and training through it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import PolicyError
from autocompress.model.usage import CONV, TRANSPOSED
from autocompress.techniques.compressed import Compressed, Precision, Range
from autocompress.techniques.fold import fold_batch_norms


def weight_limit(bits: int, reduced: bool = False) -> int:
    """Largest level of a symmetric grid: 1, 3, 7 or 127 for 2, 3, 4 or 8 bits.

    Args:
        bits: 2 to 8.
        reduced: 64 instead of 127, so that the sum of two products with 8-bit activations fits
            into 16 bits (2 * 255 * 64 < 2^15); see ``CompressionSettings.weight_range``.
    """
    return 64 if reduced and bits == 8 else 2 ** (bits - 1) - 1


def weight_scale(weight: Tensor, bits: int, reduced: bool = False) -> Tensor:
    """Symmetric scale per output channel, shaped to broadcast over the weight.

    Args:
        weight: output channels first.
        bits, reduced: see ``weight_limit``; the grid is ``-limit .. limit``.
    """
    limit = weight_limit(bits, reduced)
    peak = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12)
    return (peak / limit).view(-1, *[1] * (weight.dim() - 1))


def stored_scale(weight: Tensor, bits: int, reduced: bool = False) -> Tensor:
    """Scale at which the 8-bit weights of an integer kernel are stored; as ``weight_scale``.

    Weights of fewer bits are on a coarser grid. Its steps are a power of two of these, so that they
    are stored as they are, within 64 levels, where no sum of products can overflow.
    """
    scale = weight_scale(weight, bits, reduced)
    steps = weight_limit(8, reduced=True) // weight_limit(bits) if bits < 8 else 1
    return scale / 2 ** int(math.log2(steps))


def round_weight(weight: Tensor, bits: int, reduced: bool = False) -> Tensor:
    """Weights on their integer grid, as floats; every error is at most half a scale."""
    limit = weight_limit(bits, reduced)
    scale = weight_scale(weight, bits, reduced)
    return (weight / scale).round().clamp(-limit, limit) * scale


def rounded_weight(layer: nn.Module, precision: Precision) -> Tensor:
    """A layer's weight on its grid: a scale for each output channel, or row of a table.

    Transposed convolutions hold theirs with the inputs first; groups of them share their scales.
    """
    weight: Any = layer.weight
    if isinstance(layer, TRANSPOSED):
        turned = round_weight(weight.transpose(0, 1), precision.weight_bits, precision.reduced)
        return turned.transpose(0, 1)
    return round_weight(weight, precision.weight_bits, precision.reduced)


class _Straight(torch.autograd.Function):
    """Rounds forward, passes gradients straight back (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if inside is None else (inside,)))
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return (gradient * saved[0] if saved else gradient), None, None


def round_activation(x: Tensor, low: float, high: float) -> Tensor:
    """Values on an unsigned 8-bit grid, with straight-through gradients inside the range."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    rounded = ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    inside = (x >= low) & (x <= high)
    return _Straight.apply(x, rounded, inside)


class QuantizedLayer(nn.Module):
    """A layer that rounds its input and its weight before it works; for simulation and training.

    Args:
        layer: convolution, linear or embedding; its float weight is what training changes.
        precision: bits.
        fixed: range of the input, or ``None`` to follow the data: each batch's own extremes in
            dynamic scaling, a moving average of them otherwise.
        half: element type where the precision is 16 bits.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        layer: CONV | nn.Linear | nn.Embedding,
        precision: Precision,
        fixed: Range | None,
        half: torch.dtype = torch.float16,
    ) -> None:
        super().__init__()
        self.half_type = half
        self.layer = layer
        self.precision = precision
        self.fixed = fixed
        self.register_buffer("low", torch.tensor(fixed.low if fixed else 0.0))
        self.register_buffer("high", torch.tensor(fixed.high if fixed else 0.0))

    @property
    def weight(self) -> Tensor:
        """The layer's; models ask for its type or device."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        bias: Tensor | None = getattr(self.layer, "bias", None)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Like the layer's own."""
        numbers = x.is_floating_point()  # an embedding reads positions in its table
        if self.precision.activation_bits == 8 and numbers:
            low, high = self._range(x)
            if high > low:
                x = round_activation(x, low, high)
        weight: Tensor = self.layer.weight
        if self.precision.weight_bits <= 8:
            rounded = rounded_weight(self.layer, self.precision)
            weight = _Straight.apply(weight, rounded, None)
        elif self.precision.half:
            x, weight = self._halved(x) if numbers else x, self._halved(weight)
        return torch.func.functional_call(self.layer, {"weight": weight}, (x,))

    def _halved(self, value: Tensor) -> Tensor:
        rounded = value.to(self.half_type).to(value.dtype)
        return _Straight.apply(value, rounded, None)

    def _range(self, x: Tensor) -> tuple[float, float]:
        if self.fixed is not None and self.precision.activation_scaling == "static":
            return self.fixed.low, self.fixed.high  # plain numbers, which torch.export can keep
        low, high = min(0.0, float(x.detach().min())), max(0.0, float(x.detach().max()))
        if self.precision.activation_scaling == "dynamic":
            return low, high
        if self.training or float(self.high) <= float(self.low):
            share = 0.05 if float(self.high) > float(self.low) else 1.0
            self.low.lerp_(torch.tensor(low, device=self.low.device), share)
            self.high.lerp_(torch.tensor(high, device=self.high.device), share)
        return float(self.low), float(self.high)


class HalfLayer(nn.Module):
    """A layer that computes in 16 bits between neighbours in 32.

    Args:
        layer: convolution or linear; not changed.
        kind: ``float16`` or ``bfloat16``.
    """

    def __init__(self, layer: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind
        self.usual = layer.get_parameter("weight").dtype
        self.layer = copy.deepcopy(layer).to(kind)

    def forward(self, x: Tensor) -> Tensor:
        """Like the layer's own."""
        found: Tensor = self.layer(x.to(self.kind) if x.is_floating_point() else x)
        return found.to(self.usual)


def in_half(simulated: nn.Module) -> nn.Module:
    """The same network with its 16-bit layers computing in 16 bits instead of simulating them.

    Args:
        simulated: from ``simulate``; changed in place.
    """
    for name, found in list(simulated.named_modules()):
        if isinstance(found, QuantizedLayer) and found.precision.half:
            owner, _, child = name.rpartition(".")
            setattr(simulated.get_submodule(owner), child, HalfLayer(found.layer, found.half_type))
    return simulated


def simulate(compressed: Compressed) -> nn.Module:
    """The module with rounded weights and activations, in float arithmetic, in eval mode.

    After calibration its weights, biases and ranges are those of the exported file. Before,
    weights are rounded to nearest, biases are left alone and each batch's extremes serve.

    Args:
        compressed: not changed.
    """
    calibrated = compressed.folded
    module = copy.deepcopy(calibrated) if calibrated else fold_batch_norms(compressed.module)
    ranges = compressed.ranges or {}
    for name, precision in compressed.precisions.items():
        _wrap(compressed, module, name, precision, ranges.get(f"{name}:in"))
    return module.eval()


def trainable(compressed: Compressed) -> nn.Module:
    """A copy that trains through rounding: quantization-aware training.

    Batch norms stay as they are (they go on learning); input ranges follow a moving average.

    Args:
        compressed: with at least one quantized layer; not changed.

    Raises:
        PolicyError: nothing is quantized.

    References:
        Jacob et al., Quantization and Training of Neural Networks, CVPR 2018, section 3.
    """
    if not compressed.quantized:
        raise PolicyError(
            "Quantization-aware training needs a policy with a quantized layer; "
            "give one fewer `weight_bits`, or set `recovery.qat: false`."
        )
    module = copy.deepcopy(compressed.module)
    for name, precision in compressed.precisions.items():
        _wrap(compressed, module, name, precision, None)
    return module


def trained(module: nn.Module, compressed: Compressed) -> Compressed:
    """Take trained float weights out of ``trainable``'s module again.

    Ranges are left to the calibration that follows, which sees the final weights.

    Args:
        module: from ``trainable``, after training; not changed.
        compressed: what it was made from.
    """
    return compressed.with_weights(unwrapped(module).eval(), qat=True)


def unwrapped(module: nn.Module) -> nn.Module:
    """A copy whose simulated layers are plain ones again, with the float weights they have now."""
    plain = copy.deepcopy(module)
    for name, found in list(plain.named_modules()):
        if isinstance(found, QuantizedLayer):
            owner, _, child = name.rpartition(".")
            setattr(plain.get_submodule(owner), child, found.layer)
    return plain


def _wrap(
    compressed: Compressed, module: nn.Module, name: str, precision: Precision, fixed: Range | None
) -> None:
    layer = module.get_submodule(name)
    if not isinstance(layer, CONV | nn.Linear | nn.Embedding):
        return  # recurrent and attention layers are quantized in the file only
    owner, _, child = name.rpartition(".")
    setattr(
        module.get_submodule(owner),
        child,
        QuantizedLayer(layer, precision, fixed, compressed.half_type),
    )

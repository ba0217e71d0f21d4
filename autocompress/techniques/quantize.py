"""Quantization: integer grids, simulation in torch, and training through it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import PolicyError
from autocompress.model.tied import exchange
from autocompress.model.tracing_stubs import unfuse
from autocompress.model.usage import CONV, TRANSPOSED
from autocompress.techniques.compressed import (
    Compressed,
    Precision,
    Range,
    input_ranges,
    output_ranges,
)
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


def round_weight(weight: Tensor, bits: int, reduced: bool = False, block: int = 0) -> Tensor:
    """Weights on their integer grid, as floats; every error is at most half a scale.

    Args:
        weight: output channels first.
        bits, reduced: see ``weight_limit``.
        block: so many weights along a row share a scale; 0 is one scale per row.
    """
    if block:
        each = round_weight(in_blocks(weight, block).flatten(0, 1), bits, reduced)
        return each.view(len(weight), -1)[:, : weight[0].numel()].reshape(weight.shape)
    limit = weight_limit(bits, reduced)
    scale = weight_scale(weight, bits, reduced)
    return (weight / scale).round().clamp(-limit, limit) * scale


def in_blocks(weight: Tensor, block: int) -> Tensor:
    """The rows of a weight, cut: ``(outputs, blocks, block)``, the last block filled with zeros."""
    rows = weight.flatten(1)
    return F.pad(rows, (0, -rows.shape[1] % block)).view(len(rows), -1, block)


def rounded_weight(layer: nn.Module, precision: Precision) -> Tensor:
    """A layer's weight on its grid: a scale for each output channel, row of a table, or block.

    Transposed convolutions hold theirs with the inputs first; groups of them share their scales.
    """
    weight: Any = layer.weight
    if isinstance(layer, TRANSPOSED):
        turned = round_weight(weight.transpose(0, 1), precision.weight_bits, precision.reduced)
        return turned.transpose(0, 1)
    return _on_grid(weight, precision)


def _on_grid(weight: Tensor, precision: Precision) -> Tensor:
    return round_weight(weight, precision.weight_bits, precision.reduced, precision.block)


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


def round_activation(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Values on an unsigned 8-bit grid, with straight-through gradients inside the range."""
    scale = (high - low) / 255
    whole = -low / scale
    zero = whole.round() if isinstance(whole, Tensor) else round(whole)
    rounded = ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    inside = (x >= low) & (x <= high)
    return _Straight.apply(x, rounded, inside)


PLAIN = (CONV, nn.Linear, nn.Embedding)
"""Layers with one weight and one input."""

_ATTENDED = (0, 1, 2, "query", "key", "value")


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Range of what came in, zero in it, never empty; tensors, which torch.export can follow."""
    seen = x.detach()
    if not seen.numel():  # an expert that no sample is sent to
        seen = seen.new_zeros(1)
    return seen.amin().float().clamp(max=0.0), seen.amax().float().clamp(min=1e-30)


class QuantizedLayer(nn.Module):
    """A layer that rounds its input and its weights before it works; for simulation and training.

    What it gives is rounded too where its kernel can write nothing but integers.

    Args:
        layer: of any kind; its float weights are what training changes.
        precision: bits.
        fixed: ranges of the input, one for each call of the layer in a run of the model; none
            follow the data: each batch's own extremes, in training a moving average of them. Where
            ranges are taken at run time, each batch's own extremes count in any case.
        half: element type where the precision is 16 bits.
        written: ranges of the output where it is rounded, one for each call; ``None`` where not.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        layer: nn.Module,
        precision: Precision,
        fixed: tuple[Range, ...] = (),
        half: torch.dtype = torch.float16,
        written: tuple[Range | None, ...] = (),
    ) -> None:
        super().__init__()
        self.written = written
        self.half_type = half
        self.layer = layer
        self.precision = precision
        self.fixed = fixed
        # runtimes have integer kernels for recurrent layers with ranges taken at run time alone
        self.dynamic = precision.activation_scaling == "dynamic" or isinstance(layer, nn.RNNBase)
        self.calls = 0
        first = fixed[0] if fixed else Range(0.0, 0.0)
        self.register_buffer("low", torch.tensor(first.low))
        self.register_buffer("high", torch.tensor(first.high))
        names = [n for n, p in layer.named_parameters() if p.dim() > 1 and "weight" in n]
        self._weights = ("weight",) if isinstance(layer, PLAIN) else tuple(names)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise  # how it is copied and the like is its own affair
            # models ask a layer for its weight, encoder layers an attention for its settings
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Like the layer's own."""
        given: dict[Any, Any] = dict(enumerate(args)) | kwargs
        written = self.written[self.calls % len(self.written)] if self.written else None
        places = _ATTENDED if isinstance(self.layer, nn.MultiheadAttention) else (0,)
        read = [place for place in places if place in given]
        first = given[read[0]] if read else None
        # what is attended to may have a range of its own, which is not known here
        if isinstance(first, Tensor) and all(given[place] is first for place in read):
            given |= dict.fromkeys(read, self._input(first))
        weights = {name: self._rounded(name) for name in self._weights}
        positional = tuple(given[place] for place in range(len(args)))
        found = torch.func.functional_call(
            self.layer, weights, positional, {name: given[name] for name in kwargs}
        )
        if written is None or written.high <= written.low:
            return found
        return round_activation(found, written.low, written.high)

    def _input(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x  # an embedding reads positions in its table
        if self.precision.activation_bits == 8:
            low, high = self._range(x)
            if isinstance(high, float) and high <= low:
                return x  # calibration saw nothing but zeros
            return round_activation(x, low, high)
        return self._halved(x) if self.precision.half else x

    def _rounded(self, name: str) -> Tensor:
        weight = self.layer.get_parameter(name)
        if self.precision.weight_bits > 8:
            return self._halved(weight) if self.precision.half else weight
        if isinstance(self.layer, PLAIN):
            return _Straight.apply(weight, rounded_weight(self.layer, self.precision), None)
        return _Straight.apply(weight, _on_grid(weight, self.precision), None)

    def _halved(self, value: Tensor) -> Tensor:
        rounded = value.to(self.half_type).to(value.dtype)
        return _Straight.apply(value, rounded, None)

    def _range(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        if self.fixed and not self.dynamic:
            fixed = self.fixed[self.calls % len(self.fixed)]
            if len(self.fixed) > 1:
                self.calls += 1
            return fixed.low, fixed.high  # plain numbers, which torch.export can keep
        low, high = _extremes(x)
        if self.dynamic:
            return low, high
        known = self.high > self.low
        if self.training:
            share = 0.05 if known else 1.0
            self.low.lerp_(low.to(self.low), share)
            self.high.lerp_(high.to(self.high), share)
            return self.low.clone(), self.high.clone()
        return torch.where(known, self.low, low), torch.where(known, self.high, high)


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
    halves = {
        name: HalfLayer(found.layer, found.half_type)
        for name, found in simulated.named_modules()
        if isinstance(found, QuantizedLayer) and found.precision.half
    }
    exchange(simulated, halves)
    return simulated


def settled_weights(simulated: nn.Module) -> nn.Module:
    """The same network with weights that are rounded already, instead of at every run.

    Args:
        simulated: from ``simulate``; changed in place, and not to be trained.
    """
    for found in simulated.modules():
        if isinstance(found, QuantizedLayer):
            for name, rounded in {n: found._rounded(n) for n in found._weights}.items():
                found.layer.get_parameter(name).data = rounded.detach()
            found._weights = ()
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
    _wrap(compressed, module, compressed.ranges or {})
    unfuse(module)
    if any(isinstance(m, QuantizedLayer) and len(m.fixed) > 1 for m in module.modules()):
        module.register_forward_pre_hook(_begin)
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
    _wrap(compressed, module, {})
    unfuse(module)
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
    hooks = plain._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _begin]:
        del hooks[key]
    rounding = {n: m for n, m in plain.named_modules() if isinstance(m, QuantizedLayer)}
    exchange(plain, {name: found.layer for name, found in rounding.items()})
    return plain


def _begin(module: nn.Module, args: Any) -> None:
    """A run begins: layers that run several times take their ranges in turn."""
    for layer in module.modules():
        if isinstance(layer, QuantizedLayer):
            layer.calls = 0


def _wrap(compressed: Compressed, module: nn.Module, ranges: Mapping[str, Range]) -> None:
    """Let the layers that have few bits round, in place."""
    rounding: dict[str, nn.Module] = {}
    for name, precision in compressed.precisions.items():
        layer = module.get_submodule(name)
        if precision.half and not isinstance(layer, PLAIN):
            continue  # recurrent and attention layers are halved in the file only
        rounding[name] = QuantizedLayer(
            layer,
            precision,
            input_ranges(ranges, name),
            compressed.half_type,
            output_ranges(ranges, name),
        )
    exchange(module, rounding)

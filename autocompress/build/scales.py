"""Which scales of an activation's channels lose least, where all about it is rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.ranges import least_squares_range
from autocompress.model.usage import CONV
from autocompress.task.calling import call
from autocompress.techniques.compressed import Precision
from autocompress.techniques.moments import MatrixLayer, matrix_layer, rows
from autocompress.techniques.quantize import round_activation, round_weight

_SHARES = (0.25, 0.5, 0.75, 1.0)
"""How much of a channel's size goes into the weights that read it, the rest stays."""

_GAIN = 0.8
"""Scales are moved where the error of the layers that read them falls below this share."""

_ROWS = 1024
_FACTORS = 4
"""Of so many makers each is tried alone."""

_LEVELS = 255


@dataclass(frozen=True)
class Site:
    """An activation between layers: what makes its channels, and what reads them.

    Args:
        makers: names of parameters of which each row, or element, belongs to one channel.
        readers: layers that multiply it.
        channels: how many it has.
        clipped: makers that only a ReLU reads, so that nothing below zero is written.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    clipped: frozenset[str] = frozenset()

    def variants(self) -> Iterator[Site]:
        """Itself, then with one of its makers alone: in a product, one factor takes the scale."""
        yield self
        owners = dict.fromkeys(name.rpartition(".")[0] for name in self.makers)
        for owner in owners if 1 < len(owners) <= _FACTORS else ():
            own = tuple(n for n in self.makers if n.rpartition(".")[0] == owner)
            yield replace(self, makers=own)


def inputs_of(layer: MatrixLayer) -> int:
    """How many channels, or features, a layer reads."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


@contextmanager
def before(module: nn.Module, hooks: Mapping[str, Any]) -> Iterator[None]:
    """Let hooks run before some modules, by their names."""
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.callback(module.get_submodule(name).register_forward_pre_hook(hook).remove)
        yield


def for_inputs(layer: MatrixLayer, scale: Tensor) -> Tensor:
    """A scale of channels as a factor of a layer's weight."""
    wide = scale.repeat_interleave(inputs_of(layer) // len(scale))
    if isinstance(layer, nn.Linear):
        return wide
    groups, outputs = layer.groups, layer.out_channels
    per_output = wide.view(groups, 1, -1).expand(-1, outputs // groups, -1).flatten(0, 1)
    return per_output.reshape(outputs, -1, *[1] * len(layer.kernel_size))


def best_scale(
    module: nn.Module,
    site: Site,
    wanted: Mapping[str, Precision],
    peaks: Mapping[str, Tensor],
    batch: Any,
) -> Tensor | None:
    """The scale with which rounding costs the readers least, if that is much less.

    What is rounded are their weights, what they read, and what the layers write that make it: a
    channel that is hardly anything once it is averaged, or cut off at zero, may be large before.

    Args:
        module: whose layers are named.
        site: activation to be scaled.
        wanted: layers to be rounded.
        peaks: layer name to the largest magnitude of each of its input channels.
        batch: calibration inputs.
    """
    readers = [name for name in site.readers if name in peaks]
    fed, ends = _watched(module, site, wanted, readers, batch)
    sampled = {n: _sampled(matrix_layer(module, n), x) for n, x in fed.items() if x.numel()}
    size = torch.stack([_per_channel(peaks[n], site) for n in readers]).amax(0)
    weight = torch.stack([_largest_weights(matrix_layer(module, n), site) for n in readers]).amax(0)

    def error(scale: Tensor) -> float:
        spans = [float((high / scale).max() - (low / scale).min()) for low, high in ends]
        # of rounding to even steps, each of them by itself
        noise = sum((span / _LEVELS) ** 2 / 12 for span in spans)
        layers = {n: matrix_layer(module, n) for n in sampled}
        return sum(_error(layers[n], wanted[n], sampled[n], scale, noise) for n in sampled)

    best, least = None, _GAIN * error(torch.ones(site.channels))
    alive = (size > 0) & (weight > 0)
    for share in _SHARES:
        scale = torch.ones(site.channels)
        scale[alive] = size[alive] ** share / weight[alive] ** (1 - share)
        scale[alive] /= scale[alive].log().mean().exp()
        found = error(scale)
        if found < least:
            best, least = scale, found
    return best


def _watched(
    module: nn.Module,
    site: Site,
    wanted: Mapping[str, Precision],
    readers: Iterable[str],
    batch: Any,
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """What readers read at their first call; by channel, the ends of what integer makers write."""
    fed: dict[str, Tensor] = {}
    ends: list[tuple[Tensor, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            fed.setdefault(name, args[0])

        return hook

    def extremes(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            axis = -1 - len(layer.kernel_size) if isinstance(layer, CONV) else -1
            values = output.movedim(axis, 0).flatten(1)
            if len(values) == site.channels and values.numel():
                low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
                ends.append((torch.zeros_like(low) if name in site.clipped else low, high))

        return hook

    owners = dict.fromkeys(name.rpartition(".")[0] for name in site.makers)
    with before(module, {name: keep(name) for name in readers}), ExitStack() as stack:
        for name in owners:
            if name in wanted and wanted[name].integer:
                layer = module.get_submodule(name)
                stack.callback(layer.register_forward_hook(extremes(name)).remove)
        call(module, batch)
    return fed, ends


def _per_channel(values: Tensor, site: Site) -> Tensor:
    return values.view(site.channels, -1).amax(1)


def _largest_weights(layer: MatrixLayer, site: Site) -> Tensor:
    """The largest weight that reads each channel."""
    groups = getattr(layer, "groups", 1)
    each = layer.weight.abs().unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return _per_channel(each.flatten(1).amax(1), site)


def _sampled(layer: MatrixLayer, inputs: Tensor) -> Tensor:
    """Some of the rows that a layer multiplies, ``(groups, M, features)``."""
    found = rows(layer, inputs)
    draw = torch.Generator().manual_seed(0)
    return found[:, torch.randint(found.shape[1], (_ROWS,), generator=draw)]


def _error(
    layer: MatrixLayer, precision: Precision, fed: Tensor, scale: Tensor, noise: float
) -> float:
    """Mean squared error of what a layer gives once weights, and inputs in 8 bits, are rounded.

    ``noise`` is the variance of the scaled inputs that comes of rounding before them.
    """
    factor = for_inputs(layer, scale).expand_as(layer.weight)
    bits, block = precision.weight_bits, precision.block
    rounded = round_weight(layer.weight * factor, bits, precision.reduced, block)
    grouped = (len(fed), -1, fed.shape[-1])
    scaled = fed / factor.reshape(grouped)[:, :1]
    if precision.integer:
        values = scaled.flatten().numpy()
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        step = max(1, len(values) // 8192)
        low, high = least_squares_range(values[::step], low, high)
        scaled = round_activation(scaled, low, max(high, low + 1e-6))
    wanted = fed @ layer.weight.reshape(grouped).transpose(1, 2)
    found = scaled @ rounded.reshape(grouped).transpose(1, 2)
    lost = (wanted - found).square().mean()
    lost = lost + noise * (layer.weight * factor).square().flatten(1).sum(1).mean()
    return float(lost / wanted.square().mean().clamp(min=1e-20))

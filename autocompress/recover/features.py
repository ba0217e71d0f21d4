"""Intermediate features: where to take them in two networks, and the losses between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.task.calling import call

Size = tuple[int, ...]
"""Positions of a feature map: ``(H, W)`` of images, ``(T,)`` of sequences."""


@dataclass(frozen=True)
class Tap:
    """A module whose output is taken.

    Args:
        name: of the module.
        channels: of its output.
        size: its positions.
    """

    name: str
    channels: int
    size: Size


def find_taps(module: nn.Module, inputs: Any) -> dict[Size, Tap]:
    """The last module at each resolution: the end of a stage, whatever the architecture.

    Args:
        module: in eval mode; not changed.
        inputs: one prepared batch.

    Returns:
        Positions to tap, for outputs ``(N, C, H, W)`` with more than one position and
        ``(N, T, C)``. Modules that are called more than once are left out.
    """
    calls: dict[str, int] = {}
    found: dict[str, Tap] = {}
    handles = []

    def watch(name: str) -> None:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.dim() in (3, 4):
                image = output.dim() == 4
                size = tuple(output.shape[2:]) if image else (output.shape[1],)
                found.pop(name, None)
                found[name] = Tap(name, output.shape[1 if image else 2], size)

        handles.append(named[name].register_forward_hook(hook))

    named = {n: m for n, m in module.named_modules() if n}
    for name in named:
        watch(name)
    try:
        with torch.no_grad():
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    once = [t for n, t in found.items() if calls[n] == 1 and max(t.size) > 1]
    return {tap.size: tap for tap in once}


def pair_taps(model: Mapping[Size, Tap], teacher: Mapping[Size, Tap]) -> list[tuple[Tap, Tap]]:
    """Taps of both networks with the same positions, the largest map first.

    Raises:
        InputError: the networks have no resolution in common.
    """
    common = sorted(set(model) & set(teacher), reverse=True)
    if not common:
        raise InputError(
            "Feature distillation needs feature maps of the same size in model and teacher; "
            f"the model has {sorted(model)}, the teacher {sorted(teacher)}. Use "
            "`features: null`: the outputs teach on their own."
        )
    return [(model[size], teacher[size]) for size in common]


class FeatureHooks:
    """Keeps the outputs of some modules during a forward pass.

    Args:
        module: tapped in place until ``close``.
        taps: which modules.
    """

    def __init__(self, module: nn.Module, taps: Sequence[Tap]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self._names = [t.name for t in taps]
        named = dict(module.named_modules())
        self._handles = [
            named[name].register_forward_hook(self._keep(name)) for name in set(self._names)
        ]

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.outputs[name] = output

        return hook

    def take(self) -> list[Tensor]:
        """The outputs of the last forward pass, in the order of the taps, as float32."""
        return [self.outputs[name].float() for name in self._names]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def projection(model: Tap, teacher: Tap) -> nn.Module:
    """The learned regressor from the model's width to the teacher's; nothing where they agree.

    References:
        FitNets, Romero et al. 2015, section 2.2 (there: a convolution; 1x1 suffices where the
        maps have the same size).
    """
    if model.channels == teacher.channels:
        return nn.Identity()
    if len(model.size) == 2:
        return nn.Conv2d(model.channels, teacher.channels, 1, bias=False)
    return nn.Linear(model.channels, teacher.channels, bias=False)


def hint_loss(model: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Half the mean squared difference, summed over the pairs of features.

    References:
        Romero et al. 2015, eq. 3, as a mean over elements, so that its size does not depend on
        the feature map's.
    """
    losses = [(m - t).square().mean() / 2 for m, t in zip(model, teacher, strict=True)]
    return torch.stack(losses).sum()


def attention_loss(model: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Half the squared distance of normalized attention maps, mean over samples, summed over pairs.

    References:
        Zagoruyko and Komodakis 2017, eq. 2, with the squared norm of their published code.
    """
    losses = [
        (attention_map(m) - attention_map(t)).square().sum(1).mean() / 2
        for m, t in zip(model, teacher, strict=True)
    ]
    return torch.stack(losses).sum()


def attention_map(features: Tensor) -> Tensor:
    """Where a network looks: channels squared and averaged, flattened, of norm one.

    Args:
        features: ``(N, C, H, W)``, or ``(N, T, C)``.

    Returns:
        ``(N, H * W)`` or ``(N, T)``.
    """
    channel = 1 if features.dim() == 4 else 2
    return nn.functional.normalize(features.square().mean(channel).flatten(1), dim=1)

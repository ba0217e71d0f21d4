"""Statistics of batch norms as sums over clients, in one round.

Re-estimation on data at hand lets each batch norm normalize by its own batch, so that those behind
it see what they would. A client whose samples are of one class cannot: its batches are not those of
all. It runs the uncompressed model beside the compressed one. Each batch norm of the compressed one
normalizes by the statistics of the uncompressed one, moved by as much as the two differ on this
batch; and what both see is summed, so that the server moves the statistics by as much as the two
differ on all samples. Statistics that stay fit together this way: those that a model brings are
seldom those of its calibration samples, and new ones in a few places would not suit the old ones in
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.model.groups import SlicingPlan
from autocompress.task.calling import call
from autocompress.task.data import Split

Norm = nn.modules.batchnorm._BatchNorm
_HELD = 0.1
"""Of the usual variance, added to both variances of a batch, where a channel may be silent."""


def batch_norms(module: nn.Module) -> dict[str, Norm]:
    """Those that keep statistics, by name."""
    return {
        name: found
        for name, found in module.named_modules()
        if isinstance(found, Norm) and found.track_running_stats
    }


def kept_channels(
    original: nn.Module,
    plan: SlicingPlan,
    gone: Mapping[str, list[int]],
    widths: Mapping[str, int],
) -> dict[str, Tensor]:
    """Name of a batch norm to the channels of the uncompressed one that it still has.

    Args:
        original: uncompressed.
        plan: how it is sliced.
        gone, widths: what a policy removes, as ``LayerBank.gone`` and ``widths`` give it.
    """
    kept = {
        n: torch.ones(b.num_features, dtype=torch.bool) for n, b in batch_norms(original).items()
    }
    for (name, _), indices in plan.removals(gone, widths).items():
        if name in kept:
            kept[name][indices] = False
    return {name: mask.nonzero().flatten() for name, mask in kept.items()}


@torch.no_grad()
def batch_norm_sums(
    module: nn.Module,
    original: nn.Module,
    kept: Mapping[str, Tensor],
    sample: Split,
    *,
    batch: int = 128,
) -> dict[str, NDArray[Any]]:
    """What the batch norms of a compressed model see: values, their sum, and that of their squares.

    Args:
        module: compressed, in eval mode; the statistics in it are not looked at, and change.
        original: uncompressed, in eval mode.
        kept: see ``kept_channels``; batch norms without an entry keep their own statistics.
        sample: inputs.
        batch: samples per run.

    Returns:
        Name to ``(5, channels)``, float64: values; their sum, and that of their squares, in the
        compressed model; the same two in the uncompressed one, zero where it has no such channel.
    """
    sums: dict[str, Tensor] = {}
    first: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def remember(name: str) -> Any:
        def hook(norm: Norm, args: tuple[Tensor, ...]) -> None:
            _, mean, variance = _moments(args[0])
            first.setdefault(name, []).append((mean, variance))

        return hook

    def follow(name: str) -> Any:
        known = batch_norms(original)[name] if name in kept else None

        def hook(norm: Norm, args: tuple[Tensor, ...]) -> None:
            count, mean, variance = _moments(args[0])
            there, there_variance = torch.zeros_like(mean), torch.zeros_like(mean)
            if known is not None and first.get(name):
                there, there_variance = (part[kept[name]] for part in first[name].pop(0))
                usual, held = (part[kept[name]] for part in _running(known))
                ratio = (variance + _HELD * held) / (there_variance + _HELD * held)
                set_statistics(norm, usual + mean - there, held * ratio)
            both = ((mean, variance), (there, there_variance))
            parts = [part for m, v in both for part in (count * m, count * (v + m**2))]
            own = torch.stack([torch.full_like(mean, count), *parts])
            sums[name] = sums[name] + own if name in sums else own

        return hook

    handles = [n.register_forward_pre_hook(remember(k)) for k, n in batch_norms(original).items()]
    handles += [n.register_forward_pre_hook(follow(k)) for k, n in batch_norms(module).items()]
    try:
        for inputs, _ in sample.batches(batch):
            first.clear()
            call(original, inputs)
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: own.numpy() for name, own in sums.items()}


def set_statistics(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Put statistics into a batch norm, in place."""
    for held, given in zip(_running(norm), (mean, variance), strict=True):
        held.copy_(given)


def _running(norm: Norm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _moments(values: Tensor) -> tuple[int, Tensor, Tensor]:
    """Values per channel, and their mean and variance, in double precision."""
    others = [axis for axis in range(values.dim()) if axis != 1]
    variance, mean = torch.var_mean(values.double(), others, unbiased=False)
    return values.numel() // values.shape[1], mean, variance


def statistics(
    sums: Mapping[str, NDArray[Any]], original: nn.Module, kept: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Name to mean and variance of each batch norm of the compressed model.

    Args:
        sums: of all samples, see ``batch_norm_sums``.
        original, kept: as there; of others the statistics are those of the samples.
    """
    norms = batch_norms(original)
    found = {}
    for name, own in sums.items():
        count, total, squares, before, before_squares = torch.from_numpy(own)
        mean, usual = total / count, before / count
        variance = (squares / count - mean**2).clamp(min=0)
        if name in kept:
            known, held = (part[kept[name]].double() for part in _running(norms[name]))
            there = (before_squares / count - usual**2).clamp(min=0)
            least = 1e-3 * held
            mean = known + mean - usual
            variance = held * (variance + least) / (there + least)
        found[name] = (mean.float(), variance.float())
    return found

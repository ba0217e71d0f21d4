"""Statistics of batch norms as sums over clients, in one round.

Re-estimation on data at hand lets each batch norm normalize by its own batch, so that those behind
it see what they would. A client whose samples are of one class cannot: its batches are not those of
all. It runs the uncompressed model beside the compressed one. Each batch norm of the compressed one
normalizes by the statistics of the uncompressed one, moved by as much as the two differ on this
batch; and what both see is summed, so that the server moves the statistics by as much as the two
differ on all samples. Statistics that stay fit together this way: those that a model brings are
seldom those of its calibration samples, and new ones in a few places would not suit the old ones in
others. Clients train a compressed model in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
_OWN, _ORIGINAL = 1, 3
"""First rows of the sums of the compressed and of the uncompressed model."""


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


@contextmanager
def following(module: nn.Module, original: nn.Module, kept: Mapping[str, Tensor]) -> Iterator[None]:
    """Let batch norms of a compressed model follow those of the uncompressed one, run beside it.

    Each normalizes by the statistics of the uncompressed one, moved by as much as the two differ
    on the inputs at hand. Gradients go through the mean and the variance of the inputs, as in
    training; but inputs of one class do not stand for all. Copies of the module follow, too.

    Args:
        module: compressed; the statistics of its own are neither used nor changed.
        original: uncompressed, in eval mode.
        kept: see ``kept_channels``; batch norms without an entry go on as they are.
    """
    first: dict[str, list[tuple[Tensor, Tensor] | None]] = {}
    norms = batch_norms(module)
    known = {n: norm for n, norm in batch_norms(original).items() if n in kept and n in norms}

    def run_first(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first.clear()
        with torch.no_grad():
            original(*args, **kwargs)

    def remember(name: str) -> Any:
        def hook(norm: Norm, args: tuple[Tensor, ...]) -> None:
            found = None
            if args[0].numel():
                mean, variance = (part[kept[name]] for part in _moments(args[0].float()))
                found = mean, variance
            first.setdefault(name, []).append(found)

        return hook

    def follow(name: str) -> Any:
        usual, held = (part[kept[name]] for part in _running(known[name]))

        def hook(norm: Norm, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if not first.get(name):
                return args  # the uncompressed model did not come by here
            norm.eval()
            found = first[name].pop(0)
            if found is None or not args[0].numel():  # an expert that one of them sends nothing to
                return args
            mean, variance = _moments(args[0].float())
            there, there_variance = found
            ratio = (variance + _HELD * held) / (there_variance + _HELD * held)
            given = _given(norm, args[0].float(), usual + mean - there, held * ratio)
            return (given.to(args[0].dtype), *args[1:])

        return hook

    handles = [module.register_forward_pre_hook(run_first, with_kwargs=True)] if known else []
    handles += [norm.register_forward_pre_hook(remember(n)) for n, norm in known.items()]
    handles += [norms[n].register_forward_pre_hook(follow(n)) for n in known]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _given(norm: Norm, values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """What a norm must read, to normalize values by these statistics instead of its own."""
    own, own_variance = _running(norm)
    factor = (own_variance + norm.eps).sqrt() * (variance + norm.eps).rsqrt()
    shape = (1, -1, *(1,) * (values.dim() - 2))
    return values * factor.view(shape) + (own - mean * factor).view(shape)


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
        module: compressed, in eval mode.
        original: uncompressed, in eval mode.
        kept: see ``kept_channels``; batch norms without an entry keep their own statistics.
        sample: inputs.
        batch: samples per run.

    Returns:
        Name to ``(5, channels)``, float64: values; their sum, and that of their squares, in the
        compressed model; the same two in the uncompressed one, zero where it has no such channel.
        All zero where nothing came by.
    """
    norms, known = batch_norms(module), batch_norms(original)
    sums = {n: torch.zeros(5, norm.num_features, dtype=torch.float64) for n, norm in norms.items()}

    def add(name: str, first_row: int, channels: Tensor | slice) -> Any:
        def hook(norm: Norm, args: tuple[Tensor, ...]) -> None:
            if not args[0].numel():  # an expert that no sample is sent to
                return
            mean, variance = (part[channels] for part in _moments(args[0].double()))
            count = args[0].numel() // args[0].shape[1]
            rows = slice(first_row, first_row + 2)
            sums[name][rows] += torch.stack([count * mean, count * (variance + mean**2)])
            if first_row == _OWN:
                sums[name][0] += count

        return hook

    with following(module, original, kept):
        handles = [
            norm.register_forward_pre_hook(add(n, _OWN, slice(None)), prepend=True)
            for n, norm in norms.items()
        ]
        handles += [
            known[n].register_forward_pre_hook(add(n, _ORIGINAL, kept[n]))
            for n in norms
            if n in kept
        ]
        try:
            for inputs, _ in sample.batches(batch):
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


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel."""
    others = [axis for axis in range(values.dim()) if axis != 1]
    variance, mean = torch.var_mean(values, others, unbiased=False)
    return mean, variance


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
        if not count.any():  # it never ran, as of a head that is for training only
            continue
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

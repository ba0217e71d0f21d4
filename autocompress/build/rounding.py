"""Weights put on their grids, each layer making up for what rounding changes, also before it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.lockstep import Lockstep, affordable
from autocompress.build.solve import accumulate, refit
from autocompress.errors import UnsupportedModel
from autocompress.model.tied import shared_parameters
from autocompress.model.weights import load_tensors, state_tensors
from autocompress.policy.registry import sets_weights
from autocompress.task.calling import call
from autocompress.task.nested import tensors
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.gptq import gptq_round
from autocompress.techniques.moments import (
    MatrixLayer,
    Moments,
    checked_portions,
    input_moments,
    matrix_layer,
    solvable,
)

_log = logging.getLogger(__name__)
_IMAGES = 512
_FINE = 8
"""From so many bits on, what earlier layers lost is too little to be made up for."""


@torch.no_grad()
def compensate(folded: nn.Module, compressed: Compressed, inputs: Any) -> set[str]:
    """Round the weights of quantized layers in place, with compensation.

    In 8 bits the columns of a weight make up for each other. In fewer, a layer is first solved
    anew, so that on the inputs that the rounded layers before it leave it gives what it gave in
    float.

    Args:
        folded: batch norms folded; its weights land on their grids.
        compressed: says which layers are rounded, to how many bits; without ``gptq`` in its
            settings, those in 8 bits are left for rounding to nearest.
        inputs: calibration inputs, or a split.

    Returns:
        Names of the layers that were solved anew, whose biases are what they should be.

    References:
        Frantar et al., GPTQ, ICLR 2023; Li et al., GPTAQ, ICML 2025 (asymmetric calibration).
    """
    wanted = compensating(folded, compressed)
    low = {n for n, p in wanted.items() if p.weight_bits < _FINE}
    done: set[str] = set()
    if low:
        before = {n: t.clone() for n, t in state_tensors(folded).items()}
        try:
            done = _in_order(folded, compressed, {n: wanted[n] for n in low}, inputs)
        except UnsupportedModel as error:
            load_tensors(folded, before)  # the way may change with the weights, midway
            _log.debug("Low bits are rounded layer by layer on float inputs: %s", error)
    rest = {name: precision for name, precision in wanted.items() if name not in done}
    if rest:
        moments = input_moments(folded, rest, inputs, seed=compressed.settings.seed)
        round_by_moments(folded, compressed, rest, moments)
    return done


def compensating(folded: nn.Module, compressed: Compressed) -> dict[str, Precision]:
    """The layers whose columns make up for each other's rounding, with their bits."""
    most = 8 if compressed.settings.weight_rounding == "gptq" else _FINE - 1
    return {
        n: p
        for n, p in compressed.precisions.items()
        if p.weight_bits <= most and solvable(folded.get_submodule(n))
    }


@torch.no_grad()
def round_by_moments(
    folded: nn.Module,
    compressed: Compressed,
    wanted: Mapping[str, Precision],
    moments: Mapping[str, Moments],
) -> None:
    """Round layers in place, each on the moments of its inputs in the float network.

    Args:
        folded, compressed: as in ``compensate``.
        wanted: layer name to its bits.
        moments: of these layers' inputs.
    """
    sparse = _sparse(compressed)
    for name in wanted.keys() & moments.keys():  # what met no inputs is rounded to nearest
        weight, precision = matrix_layer(folded, name).weight, wanted[name]
        second = moments[name].second
        rows = len(weight) // len(second)
        for group, matrix in enumerate(second):
            block = weight[group * rows : (group + 1) * rows]
            block.copy_(
                _rounded(block, matrix[:-1, :-1], precision, block == 0 if sparse else None)
            )


def _sparse(compressed: Compressed) -> bool:
    """Whether zeros are there on purpose."""
    return any(map(sets_weights, compressed.policy.layers.values()))


def _rounded(weight: Tensor, moments: Tensor, precision: Precision, zeros: Tensor | None) -> Tensor:
    flat = weight.flatten(1)
    found = gptq_round(
        flat,
        moments,
        precision.weight_bits,
        reduced=precision.reduced,
        block=precision.block,
        zeros=None if zeros is None else zeros.flatten(1),
    )
    return found.view_as(weight)


def _in_order(
    folded: nn.Module, compressed: Compressed, wanted: Mapping[str, Precision], inputs: Any
) -> set[str]:
    """Solve and round layer after layer; gives the names of those that were."""
    count = affordable(_IMAGES, _widest(folded, next(checked_portions(inputs, 1))))
    batch = next(checked_portions(inputs, count))
    pair = Lockstep(copy.deepcopy(folded), folded, compressed.precisions, batch)
    shared = {name for places in shared_parameters(folded) for name, _ in places}
    done = set()
    for key, node in pair.layers():
        name = str(node.target)
        layer = folded.get_submodule(name)
        several = name in pair.repeated or name in shared or getattr(layer, "groups", 1) > 1
        if name not in wanted or several:
            continue
        assert isinstance(layer, MatrixLayer)
        fed = [side.source(key) for side in pair.new]
        equations = accumulate(layer, fed, [side.ahead(key) for side in pair.old])
        if equations is None:
            continue
        zeros = layer.weight == 0 if _sparse(compressed) else None
        if not pair.same(key):
            flat = None if zeros is None else zeros.flatten(1)
            refit(layer, equations, compressed.settings.ridge, flat)
        gram = equations.gram
        moments = gram[:-1, :-1].to(layer.weight.dtype)
        rounded = _rounded(layer.weight, moments, wanted[name], zeros)
        if layer.bias is not None and compressed.settings.bias_correction:
            lost = (layer.weight - rounded).flatten(1)
            layer.bias.add_(lost @ gram[-1, :-1].to(lost.dtype))
        layer.weight.copy_(rounded)
        done.add(name)
    return done


def _widest(module: nn.Module, one: Any) -> int:
    """Elements of the largest activation of one sample."""
    found = [1]
    handles = [
        part.register_forward_hook(
            lambda m, args, out: found.append(max((t.numel() for t in tensors(out)), default=1))
        )
        for part in module.modules()
    ]
    try:
        call(module, one)
    finally:
        for handle in handles:
            handle.remove()
    return max(found)

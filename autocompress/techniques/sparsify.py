"""Unstructured sparsity: weights of the smallest magnitude become zero and stay so."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.model.usage import TRANSPOSED
from autocompress.policy.policy import LayerPolicy


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Mask of the weights that stay: exactly ``int(numel * sparsity)`` go.

    Args:
        weight: any shape.
        sparsity: fraction that goes, in [0, 1).

    References:
        Han et al., Learning both Weights and Connections, NeurIPS 2015.
    """
    count = int(weight.numel() * sparsity)
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    if count:
        mask[weight.detach().abs().flatten().topk(count, largest=False).indices] = False
    return mask.view_as(weight)


def two_four_mask(weight: Tensor) -> Tensor:
    """Mask of the two largest of every four weights along the input; a short tail stays whole."""
    matrix = weight.detach().abs().flatten(1)
    whole = matrix.shape[1] // 4 * 4
    mask = torch.ones_like(matrix, dtype=torch.bool)
    fours = matrix[:, :whole].reshape(len(matrix), -1, 4)
    chosen = torch.zeros_like(fours, dtype=torch.bool)
    chosen.scatter_(2, fours.topk(2, dim=2).indices, True)
    mask[:, :whole] = chosen.view(len(matrix), whole)
    return mask.view_as(weight)


@torch.no_grad()
def sparsify(layers: Mapping[str, tuple[nn.Module, LayerPolicy]], scope: str = "layer") -> None:
    """Zero weights in place.

    Args:
        layers: name to module and policy.
        scope: ``layer``: each reaches its own ratio; ``global``: one threshold for all of them,
            such that their mean ratio (weighted by size) is reached. Patterns are always local.
    """
    loose = {n: (m, p) for n, (m, p) in layers.items() if p.sparsity and p.pattern is None}
    for module, policy in layers.values():
        if policy.pattern == "2:4":
            weight = _weight(module)
            if isinstance(module, TRANSPOSED):  # held with the inputs first
                weight = weight.transpose(0, 1)
            weight.mul_(two_four_mask(weight))
    if scope == "global" and loose:
        weights = [_weight(m) for m, _ in loose.values()]
        wanted = sum(
            int(w.numel() * p.sparsity) for w, (_, p) in zip(weights, loose.values(), strict=True)
        )
        flat = torch.cat([w.flatten() for w in weights])
        mask = magnitude_mask(flat, wanted / flat.numel() + 0.5 / flat.numel())
        for weight, part in zip(weights, mask.split([w.numel() for w in weights]), strict=True):
            weight.mul_(part.view_as(weight))
        return
    for module, policy in loose.values():
        weight = _weight(module)
        weight.mul_(magnitude_mask(weight, policy.sparsity))


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight

"""Transposed convolutions hold their weight with the inputs first; what ranks outputs must know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.model.usage import outputs_first
from autocompress.policy.policy import LayerPolicy
from autocompress.task.data import Split
from autocompress.techniques.compressed import Precision
from autocompress.techniques.importance import l1_scores, taylor_scores
from autocompress.techniques.quantize import rounded_weight
from autocompress.techniques.sparsify import sparsify

LAYERS = [
    lambda g: nn.ConvTranspose1d(6, 4, 3, groups=g),
    lambda g: nn.ConvTranspose2d(6, 4, 3, groups=g),
    lambda g: nn.ConvTranspose3d(6, 4, 2, groups=g),
]


def made(build: object, groups: int) -> nn.Module:
    torch.manual_seed(groups)
    return nn.Sequential(build(groups))  # type: ignore[operator]  # a factory


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("build", LAYERS)
def test_outputs_are_ranked_by_what_makes_them(build: object, groups: int) -> None:
    """One output at a time is silenced, as brute force sees it: its filters are its rows."""
    model = made(build, groups)
    layer = model[0]
    inputs = torch.randn(2, 6, *[5] * (layer.weight.dim() - 2))
    scores = l1_scores(model, ["0"], 4)
    rows = outputs_first(layer, layer.weight.detach())
    for output in range(4):
        assert float(scores[output]) == pytest.approx(float(rows[output].abs().sum()), rel=1e-5)
        alone = torch.zeros_like(layer.weight, requires_grad=True)
        silenced = torch.func.functional_call(layer, {"weight": alone}, (inputs,))[:, output].sum()
        reached = torch.autograd.grad(silenced, alone)[0] != 0
        assert float(layer.weight.detach()[reached].abs().sum()) == pytest.approx(
            float(scores[output]), rel=1e-5
        )


@pytest.mark.parametrize("groups", [1, 2])
def test_taylor_scores_are_gradient_times_weight_of_each_output(groups: int) -> None:
    model = made(LAYERS[1], groups)
    inputs, targets = torch.randn(3, 6, 4, 4), torch.zeros(3)
    loss = lambda outputs, _: (outputs**2).sum()  # noqa: E731 - short
    scores = taylor_scores(model, {"0": ["0"]}, {"0": 4}, Split(inputs, targets), loss)["0"]
    scale = torch.ones(4, requires_grad=True)
    layer = model[0]
    outputs = torch.nn.functional.conv_transpose2d(inputs, layer.weight, groups=groups)
    scaled = outputs * scale[:, None, None] + layer.bias[:, None, None]
    (gradient,) = torch.autograd.grad(loss(scaled, None), scale)
    torch.testing.assert_close(scores, gradient**2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("build", LAYERS)
def test_two_of_four_along_the_inputs_stay(build: object) -> None:
    model = made(build, 1)
    sparsify({"0": (model[0], LayerPolicy(pattern="2:4"))})
    rows = model[0].weight.transpose(0, 1).flatten(1)
    fours = rows[:, : rows.shape[1] // 4 * 4].reshape(4, -1, 4)
    assert ((fours != 0).sum(-1) == 2).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_every_output_has_a_grid_of_its_own(groups: int) -> None:
    layer = made(LAYERS[1], groups)[0]
    with torch.no_grad():
        layer.weight[:, 0] *= 100  # one loud output may not spoil the others
    lost = (rounded_weight(layer, Precision(8)) - layer.weight).abs()
    peak = layer.weight.abs().amax((0, 2, 3), keepdim=True)
    assert (lost <= peak / 127 / 2 * 1.001).all()

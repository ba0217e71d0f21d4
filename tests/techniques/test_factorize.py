"""Factors against singular values, dense products, and the formula."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_networks import data, hook_macs
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.errors import PolicyError
from autocompress.model.cost import layer_cost, policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.shapes import layer_shape
from autocompress.policy.inventory import LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.values import Factorization
from autocompress.techniques.factorize import (
    METHODS,
    factorize,
    output_error,
    output_svd,
)
from autocompress.techniques.factors import break_even_rank, factor_ranks

Build = Callable[..., LayerBank]


def conv(stride: int = 1) -> tuple[nn.Conv2d, LayerSpec]:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 16, 3, stride, 1)
    size = 8 // stride
    macs = 12 * 16 * 9 * size * size
    spec = LayerSpec("c", "conv", 12, 16, (3, 3), (stride, stride), 1, size * size, macs, 1744)
    return layer, spec


def linear() -> tuple[nn.Linear, LayerSpec]:
    torch.manual_seed(0)
    return nn.Linear(20, 10), LayerSpec("l", "linear", 20, 10, macs=200, params=210)


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_svd_error_is_the_tail_of_the_singular_values(rank: int) -> None:
    weight = torch.randn(10, 20, dtype=torch.float64)
    first, second = output_svd(weight, rank, None)
    tail = np.linalg.svd(weight.numpy(), compute_uv=False)[rank:]
    error = float(((weight - second @ first) ** 2).sum())
    assert error == pytest.approx(float((tail**2).sum()), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_data_aware_error_is_the_tail_of_the_weighted_singular_values(rank: int) -> None:
    x = torch.randn(500, 20, dtype=torch.float64) @ torch.randn(20, 20, dtype=torch.float64)
    moments = x.T @ x / 500
    weight = torch.randn(10, 20, dtype=torch.float64)

    def error(factors: tuple[torch.Tensor, torch.Tensor]) -> float:
        return float(((x @ (weight - factors[1] @ factors[0]).T) ** 2).sum() / 500)

    root = np.linalg.cholesky(moments.numpy())
    tail = np.linalg.svd(weight.numpy() @ root, compute_uv=False)[rank:]
    aware, plain = error(output_svd(weight, rank, moments)), error(output_svd(weight, rank, None))
    assert aware == pytest.approx(float((tail**2).sum()), rel=1e-6)
    assert aware < plain


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_shapes_macs_and_params_are_the_formula(method: str, stride: int) -> None:
    layer, spec = conv(stride)
    x = torch.randn(2, 12, 8, 8)
    for ratio in (0.3, 0.7, 1.0):
        policy = LayerPolicy(rank_ratio=ratio, factorization=method)
        factors = factorize(layer, spec, policy)
        assert factors(x).shape == layer(x).shape
        cost = layer_cost(layer_shape(spec, policy, 12, 16))
        assert sum(hook_macs(factors, x).values()) == cost.macs
        assert sum(p.numel() for p in factors.parameters()) == cost.params
        assert cost.macs <= spec.macs


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_models_may_ask_a_factorized_layer_for_the_type_of_its_weight(method: str) -> None:
    """As transformers' ViT does before it calls the layer."""
    layer, spec = conv(1)
    model = nn.Sequential(layer)
    model[0] = factorize(layer, spec, LayerPolicy(rank_ratio=0.5, factorization=method))
    assert model[0].weight.dtype is layer.weight.dtype
    assert "0.weight" not in model.state_dict()


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_one_more_rank_than_break_even_costs_more_than_dense(method: str) -> None:
    _, spec = conv(2)
    edge = break_even_rank(spec, 12, 16, method)
    dense = 12 * 16 * 9
    if method == "svd":
        cost: Callable[[float], float] = lambda r: r * (12 * 9 + 16)  # noqa: E731 - one formula per branch
    elif method == "spatial":
        cost = lambda r: r * (12 * 3 * 2 + 16 * 3)  # noqa: E731 - one formula per branch
    else:
        cost = lambda r: (  # noqa: E731 - one formula per branch
            r / 16 * 12 * 12 * 4 + (r / 16) ** 2 * dense + r * 16
        )
    assert cost(edge) == pytest.approx(dense)
    assert factor_ranks(spec, LayerPolicy(rank_ratio=1.0, factorization=method), 12, 16)[
        -1
    ] == math.floor(edge)


def test_full_rank_factors_are_the_layer() -> None:
    layer, _ = linear()
    first, second = output_svd(layer.weight, 10, None)
    torch.testing.assert_close(second @ first, layer.weight.detach(), rtol=1e-4, atol=1e-5)


def test_a_separable_kernel_survives_spatial_factors_exactly() -> None:
    layer, spec = conv()
    with torch.no_grad():
        column, row = torch.randn(1, 12, 3), torch.randn(16, 1, 3)
        layer.weight.copy_(torch.einsum("rch,orw->ochw", column, row))
    factors = factorize(layer, spec, LayerPolicy(rank_ratio=0.3, factorization="spatial"))
    x = torch.randn(2, 12, 8, 8)
    torch.testing.assert_close(factors(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 64), (3, 64), (64, 2)])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 1.0])
def test_no_side_of_a_core_is_wider_than_the_other_can_fill(
    inputs: int, outputs: int, ratio: float
) -> None:
    model = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1)).eval()
    spec = take_inventory(model, torch.zeros(1, inputs, 8, 8)).layers[0]
    policy = LayerPolicy(rank_ratio=ratio, factorization="tucker2")
    before, after = factor_ranks(spec, policy, inputs, outputs)
    assert 1 <= before <= min(inputs, 9 * after)
    assert 1 <= after <= min(outputs, 9 * before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = factorize(model[0], spec, policy)
    core = made[1].weight.flatten(1)
    assert torch.linalg.matrix_rank(core, rtol=1e-4) == after


def test_tucker_of_a_low_rank_kernel_is_exact() -> None:
    layer, spec = conv()
    with torch.no_grad():
        core = torch.randn(2, 2, 3, 3)
        layer.weight.copy_(
            torch.einsum("abhw,oa,ib->oihw", core, torch.randn(16, 2), torch.randn(12, 2))
        )
    factors = factorize(layer, spec, LayerPolicy(rank_ratio=0.6, factorization="tucker2"))
    assert factors[1].weight.shape[0] >= 2
    x = torch.randn(2, 12, 8, 8)
    torch.testing.assert_close(factors(x), layer(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_bank_factors_are_nearer_than_plain_ones_on_the_calibration_data(
    bank: Build, name: str
) -> None:
    found = bank(name)
    inputs = data(name).train.inputs()
    for spec in found.inventory.layers:
        if spec.kind != "conv" or spec.out_channels == 5:
            continue
        policy = LayerPolicy(rank_ratio=0.4, factorization="svd")
        layer = found.model.get_submodule(spec.name)
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_pre_hook(lambda m, a, s=seen: s.append(a[0]))
        with torch.no_grad():
            found.model(inputs)
        handle.remove()
        aware = found.stitch(Policy({spec.name: policy})).module.get_submodule(spec.name)
        plain = factorize(layer, spec, policy)
        with torch.no_grad():
            wanted = layer(seen[0])
            errors = [float(((f(seen[0]) - wanted) ** 2).mean()) for f in (aware, plain)]
        assert errors[0] <= errors[1] * (1 + 1e-4), spec.name


def test_pruned_and_factorized_cost_is_the_formula(bank: Build) -> None:
    found = bank("residual")
    policy = Policy(
        {
            "conv3": LayerPolicy(prune_ratio=0.5, rank_ratio=0.5, factorization="tucker2"),
            "conv4": LayerPolicy(rank_ratio=0.6, factorization="spatial"),
            "head": LayerPolicy(rank_ratio=0.8),
        }
    )
    small = found.stitch(policy)
    cost = policy_cost(found.inventory, policy, found.settings)
    counted = hook_macs(small.module, data("residual").train.inputs(1))
    assert cost.macs == sum(counted.values())
    assert small.parts["conv3"] == ("conv3.0", "conv3.1", "conv3.2")


def test_grouped_layers_cannot_be_factorized(bank: Build) -> None:
    with pytest.raises(PolicyError, match="convolution with groups"):
        bank("grouped").stitch(Policy({"conv2": LayerPolicy(rank_ratio=0.5)}))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["valid", "same", 2])
@pytest.mark.parametrize("method", METHODS)
def test_factors_of_full_rank_pad_as_the_layer_does(
    method: Factorization, padding: str | int, mode: str
) -> None:
    """Odd and unequal sizes, an even kernel, and dilation: exact at a rank that loses nothing."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, (3, 2), padding=padding, dilation=(1, 2), padding_mode=mode)
    x = torch.randn(2, 2, 9, 7)
    with torch.no_grad():  # a kernel of rank one in every way loses nothing at rank one
        parts = (torch.randn(n) for n in layer.weight.shape)
        layer.weight.copy_(torch.einsum("o,i,h,w->oihw", *parts))
    spec = LayerSpec("c", "conv", 2, 3, (3, 2), (1, 1))
    factors = factorize(layer, spec, LayerPolicy(rank_ratio=0.1, factorization=method))
    torch.testing.assert_close(factors(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", 1])
def test_layers_of_one_and_three_axes_have_svd_factors(padding: str | int, mode: str) -> None:
    torch.manual_seed(0)
    for kind, sizes in ((nn.Conv1d, (9,)), (nn.Conv3d, (5, 6, 4))):
        layer = kind(3, 4, 3, padding=padding, padding_mode=mode)
        x = torch.randn(2, 3, *sizes)
        (spec,) = take_inventory(layer.eval(), x).layers
        assert not spec.why_not("low-rank")
        with torch.no_grad():  # of rank one
            layer.weight.copy_(torch.randn(4, *[1] * layer.weight[0].dim()) * layer.weight[:1])
        factors = factorize(layer, spec, LayerPolicy(rank_ratio=0.1, factorization="auto"))
        torch.testing.assert_close(factors(x), layer(x), rtol=1e-4, atol=1e-4)
        assert sum(p.weight.numel() for p in factors) == 3 * 3 ** len(sizes) + 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(7, 9), (8, 5)])
@pytest.mark.parametrize("stride", [(1, 2), (3, 2), (2, 1)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 0), (2, 3), "valid"])
def test_multiply_adds_of_odd_shapes_are_those_that_run(
    method: Factorization,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 10, (3, 5), stride, padding))
    x = torch.randn(1, 6, *size)
    (spec,) = take_inventory(model.eval(), x).layers
    policy = LayerPolicy(rank_ratio=0.8, factorization=method)
    factors = factorize(model[0], spec, policy)
    assert factors(x).shape == model(x).shape
    cost = layer_cost(layer_shape(spec, policy, 6, 10))
    assert sum(hook_macs(factors, x).values()) == cost.macs


@pytest.mark.parametrize("rank_ratio", [0.2, 0.5, 0.9])
def test_spatial_error_is_the_tail_of_the_singular_values(rank_ratio: float) -> None:
    layer, spec = conv()
    policy = LayerPolicy(rank_ratio=rank_ratio, factorization="spatial")
    column, row = (p.weight.detach() for p in factorize(layer, spec, policy))
    made = torch.einsum("orw,rih->oihw", row[:, :, 0], column[..., 0])
    columns = layer.weight.detach().permute(0, 3, 1, 2).reshape(16 * 3, 12 * 3)
    (rank,) = factor_ranks(spec, policy, 12, 16)
    tail = np.linalg.svd(columns.double().numpy(), compute_uv=False)[rank:]
    assert output_error(layer.weight - made, None) == pytest.approx(float((tail**2).sum()), 1e-4)

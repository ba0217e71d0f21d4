"""Grids, ranges and rounding against closed forms, numpy and brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.build.ranges import RangeFinder, least_squares_range
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Precision
from autocompress.techniques.gptq import gptq_round
from autocompress.techniques.quantize import (
    QuantizedLayer,
    round_activation,
    round_weight,
    weight_scale,
)


@given(st.sampled_from([2, 3, 4, 8]), st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_weights_move_by_half_a_scale_at_most(bits: int, seed: int, size: float) -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * size
    scale, rounded = weight_scale(weight, bits), round_weight(weight, bits)
    assert ((weight - rounded).abs() <= scale / 2 * (1 + 1e-4)).all()
    steps = rounded / scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert steps.abs().max() <= 2 ** (bits - 1) - 1 + 1e-3


def test_a_channel_of_zeros_stays_zero() -> None:
    assert torch.equal(round_weight(torch.zeros(2, 3), 4), torch.zeros(2, 3))


def test_activations_move_by_half_a_step_inside_their_range_and_clip_outside() -> None:
    x = torch.linspace(-2, 5, 1001)
    rounded = round_activation(x, -1.0, 3.0)
    inside, step = (x >= -1) & (x <= 3), 4 / 255
    assert ((x - rounded).abs()[inside] <= step * (1 + 1e-4)).all()
    assert ((x - rounded).abs()[inside].median()) <= step / 2
    assert rounded.max() <= 3 + step
    assert rounded.min() >= -1 - step
    assert float(round_activation(torch.zeros(1), -1.0, 3.0)) == 0


def test_gradients_pass_straight_through_inside_the_range_only() -> None:
    x = torch.tensor([-2.0, -0.5, 0.3, 2.9, 4.0], requires_grad=True)
    round_activation(x, -1.0, 3.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("how", ["minmax", "percentile"])
def test_ranges_are_those_of_numpy(how: str) -> None:
    values = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    values[0] = 40.0
    finder = RangeFinder(CompressionSettings.model_validate({"ranges": how, "percentile": 99.0}))
    for part in np.split(values, 4):
        finder.add(part)
    found = finder.range()
    if how == "minmax":
        assert (found.low, found.high) == (values.min(), 40.0)
    else:
        low, high = np.percentile(values, [0.5, 99.5])
        assert (found.low, found.high) == pytest.approx((low, high))


def test_the_mse_range_errs_less_than_the_extremes() -> None:
    values = np.random.default_rng(0).laplace(size=20_000).astype(np.float32)

    def error(low: float, high: float) -> float:
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        grid = np.clip(np.round(values / scale) + zero, 0, 255)
        return float((((grid - zero) * scale - values) ** 2).mean())

    low, high = float(values.min()), float(values.max())
    best = least_squares_range(values, low, high)
    assert error(*best) < error(low, high)
    shrunk = [error(low * c, high * c) for c in np.linspace(0.3, 1, 36)]
    assert error(*best) == pytest.approx(min(shrunk))


def test_ranges_include_zero_and_are_never_empty() -> None:
    finder = RangeFinder(CompressionSettings(ranges="minmax"))
    finder.add(np.full(8, 3.0, np.float32))
    assert (finder.range().low, finder.range().high) == (0.0, 3.0)
    nothing = RangeFinder(CompressionSettings())
    nothing.add(np.zeros(8, np.float32))
    assert nothing.range().high > nothing.range().low


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_errs_no_more_than_nearest_and_stays_on_the_grid(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    mix = torch.randn(24, 24, generator=generator)
    x = torch.randn(600, 24, generator=generator) @ mix
    weight, moments = torch.randn(9, 24, generator=generator), x.T @ x / 600
    rounded = gptq_round(weight, moments, bits)
    nearest = round_weight(weight, bits)

    def error(candidate: Tensor) -> float:
        return float(((x @ (weight - candidate).T) ** 2).mean())

    assert error(rounded) < error(nearest)
    torch.testing.assert_close(rounded, round_weight(rounded, bits), rtol=1e-6, atol=0)
    assert all(len(row.unique()) <= 2**bits - 1 for row in rounded)


def test_gptq_is_near_the_best_rounding_by_brute_force() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(2)) @ torch.tensor(
        [[1.0, 0.8, 0.1, 0], [0, 1, 0.7, 0.2], [0, 0, 1, 0.9], [0, 0, 0, 1]]
    )
    weight = torch.randn(1, 4, generator=torch.Generator().manual_seed(3))
    scale, limit = float(weight_scale(weight, 3)), 3
    grid = torch.tensor(list(product(range(-limit, limit + 1), repeat=4)), dtype=torch.float32)
    errors = ((x @ (weight - grid * scale).T) ** 2).mean(0)

    def error(candidate: Tensor) -> float:
        return float(((x @ (weight - candidate).T) ** 2).mean())

    found, plain = error(gptq_round(weight, x.T @ x / 200, 3)), error(round_weight(weight, 3))
    assert float(errors.min()) <= found * (1 + 1e-5)
    assert found <= plain


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_without_correlation_is_the_best_clipped_rounding(bits: int) -> None:
    """Against brute force over the scale of each row, in steps ten times as fine."""
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    limit, peak = 2 ** (bits - 1) - 1, weight.abs().amax(1, keepdim=True)
    errors = []
    for share in torch.linspace(0.3, 1, 141):
        scale = share * peak / limit
        errors.append(((weight / scale).round().clamp(-limit, limit) * scale - weight).norm(dim=1))
    found = (gptq_round(weight, torch.eye(40), bits) - weight).norm(dim=1)
    best = torch.stack(errors).amin(0)
    assert (found >= best * (1 - 1e-5)).all()
    assert (found <= best * 1.05).all()


def test_gptq_at_eight_bits_clips_nothing() -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gptq_round(weight, torch.eye(10), 8), round_weight(weight, 8))


def test_gptq_keeps_zeros_and_the_others_make_up_for_them() -> None:
    draws = torch.Generator().manual_seed(0)
    weight, mixed = (torch.randn(n, 12, generator=draws) for n in (6, 200))
    x = mixed @ torch.randn(12, 12, generator=draws)
    zeros = torch.rand(6, 12, generator=draws) < 0.5
    weight = weight.masked_fill(zeros, 0.0)
    moments = x.T @ x / 200
    found = gptq_round(weight, moments, 4, zeros=zeros)
    assert (found[zeros] == 0).all()
    plain = round_weight(weight, 4)
    errors = [((weight - w) @ moments * (weight - w)).sum() for w in (found, plain)]
    assert errors[0] < errors[1]


def test_a_recurrent_layer_rounds_by_the_range_at_hand_also_after_training_on_louder_inputs() -> (
    None
):
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4, batch_first=True)
    simulated = QuantizedLayer(layer, Precision(8, 8)).train()
    quiet = torch.randn(2, 5, 3) / 100
    with torch.no_grad():
        wanted = layer(quiet)[0] - layer(torch.zeros_like(quiet))[0]
        for training in (True, False):
            simulated.train()(torch.randn(2, 5, 3) * 100)
            simulated.train(training)
            found = simulated(quiet)[0] - simulated(torch.zeros_like(quiet))[0]
            assert (found - wanted).norm() < 0.1 * wanted.norm()

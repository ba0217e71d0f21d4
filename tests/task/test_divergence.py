"""Divergences against torch's distributions, scipy's entropy and numerical integration."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import entropy, norm
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from autocompress.errors import InputError
from autocompress.task.divergence import (
    Divergence,
    GaussianKL,
    Heads,
    SigmoidKL,
    SoftmaxKL,
    as_divergence,
    divergence_of,
)


def outputs(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An original's outputs, and those of something near it."""
    generator = torch.Generator().manual_seed(seed)
    original = 2.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return original, original + 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 5), (4, 2), (3, 6, 5)])
def test_classes_against_scipys_entropy(shape: tuple[int, ...]) -> None:
    original, compressed = outputs(*shape)
    found = divergence_of("classes").fitted(original)(original, compressed)
    p, q = (x.double().softmax(-1).flatten(0, -2).numpy() for x in (original, compressed))
    assert found.numpy() == pytest.approx(
        entropy(p, q, axis=1).reshape(len(original), -1).mean(1), rel=1e-4
    )


@pytest.mark.parametrize("shape", [(9, 1), (9,), (4, 6, 1)])
def test_one_logit_against_torchs_bernoulli(shape: tuple[int, ...]) -> None:
    original, compressed = outputs(*shape, seed=1)
    found = divergence_of("binary").fitted(original)(original, compressed)
    wanted = kl_divergence(Bernoulli(logits=original), Bernoulli(logits=compressed))
    assert found.tolist() == pytest.approx(
        wanted.reshape(len(original), -1).mean(1).tolist(), rel=1e-4
    )
    assert float(found.min()) > 0


def test_numbers_against_the_integral_over_two_normal_densities() -> None:
    original, compressed = outputs(6, 1, seed=2)
    found = divergence_of("value").fitted(original)(original, compressed).tolist()
    spread = float(np.std(original.numpy()))
    for a, b, nats in zip(original.flatten(), compressed.flatten(), found, strict=True):
        p, q = norm(float(a), spread), norm(float(b), spread)

        def each(x: float, p: norm = p, q: norm = q) -> float:
            return float(math.exp(p.logpdf(x)) * (p.logpdf(x) - q.logpdf(x)))

        wanted, _ = quad(each, float(a) - 12 * spread, float(a) + 12 * spread)
        assert nats == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", ["classes", "binary", "value"])
def test_nothing_changed_is_no_divergence(kind: str) -> None:
    original, _ = outputs(5, 3 if kind == "classes" else 1)
    assert divergence_of(kind).fitted(original)(original, original).abs().max() < 1e-6  # type: ignore[arg-type]  # a kind


def test_a_softmax_over_one_column_is_said_rather_than_zero() -> None:
    with pytest.raises(InputError, match="always 1"):
        SoftmaxKL()(*outputs(5, 1))


def test_numbers_that_never_vary_have_no_scale() -> None:
    with pytest.raises(InputError, match="gives 3 for all of 4 inputs"):
        divergence_of("value").fitted(torch.full((4, 1), 3.0))


def test_yes_or_no_per_column_is_the_sum_of_bernoullis() -> None:
    original, compressed = outputs(7, 4, seed=3)
    found = SigmoidKL()(original, compressed)
    wanted = kl_divergence(Bernoulli(logits=original), Bernoulli(logits=compressed)).sum(1)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-6)


def test_each_column_of_numbers_has_a_variance_of_its_own() -> None:
    original, compressed = outputs(50, 3, seed=4)
    scales = torch.tensor([1.0, 100.0, 1e-3], dtype=torch.float64)
    original, compressed = original * scales, compressed * scales
    found = GaussianKL().fitted(original)(original, compressed)
    spread = original.std(0, correction=0)
    wanted = kl_divergence(Normal(original, spread), Normal(compressed, spread)).sum(1)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-6)


def test_images_have_a_variance_per_channel_and_are_averaged_over_pixels() -> None:
    original, compressed = outputs(5, 2, 3, 3, seed=5)
    spread = original.transpose(0, 1).flatten(1).std(1, correction=0).view(1, 2, 1, 1)
    wanted = kl_divergence(Normal(original, spread), Normal(compressed, spread)).sum(1).mean((1, 2))
    found = GaussianKL().fitted(original)(original, compressed)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-6)


def test_a_column_that_never_varies_has_the_others_scale() -> None:
    original, compressed = outputs(6, 2, seed=6)
    original[:, 1] = 3.0
    found = GaussianKL().fitted(original)(original, compressed)
    assert bool(torch.isfinite(found).all())


def test_classes_of_pixels_lie_on_axis_one() -> None:
    original, compressed = outputs(4, 5, 3, 2, seed=7)
    p, q = (x.softmax(1).movedim(1, -1).flatten(1, 2).numpy() for x in (original, compressed))
    found = SoftmaxKL(axis=1)(original, compressed)
    assert found.numpy() == pytest.approx(entropy(p, q, axis=2).mean(1), rel=1e-6)


def test_targets_of_the_next_token_mask_the_position_before() -> None:
    original, compressed = outputs(2, 4, 5, seed=8)
    targets = torch.tensor([[1, 2, -100, 4], [-100, -100, -100, -100]])
    p, q = (x.softmax(-1).numpy() for x in (original, compressed))
    each = entropy(p, q, axis=2)
    found = SoftmaxKL(ignore=-100, shift=True)(original, compressed, targets)
    assert found.tolist() == pytest.approx([each[0, [0, 2]].mean(), 0.0], rel=1e-6)


def test_heads_are_weighted_and_named() -> None:
    (kinds, other_kinds), (sizes, other_sizes) = outputs(9, 3, seed=9), outputs(9, 1, seed=10)
    original, compressed = (
        {"kind": kinds, "size": sizes},
        {"kind": other_kinds, "size": other_sizes},
    )
    both = Heads((SoftmaxKL("kind"), GaussianKL("size")), (2.0, 0.5)).fitted(original)
    wanted = 2 * SoftmaxKL()(kinds, other_kinds)
    wanted += 0.5 * GaussianKL().fitted(sizes)(sizes, other_sizes)
    assert both(original, compressed).tolist() == pytest.approx(wanted.tolist())
    assert "size" in both.name
    with pytest.raises(InputError, match="no 'kinds'; they hold kind"):
        SoftmaxKL("kinds")(original, compressed)
    with pytest.raises(InputError, match="several tensors"):
        SoftmaxKL()(original, compressed)


def test_a_function_of_ones_own_may_ask_for_targets() -> None:
    original, compressed = outputs(4, 2, seed=11)
    whole = as_divergence(lambda a, b: (a - b).abs().mean())
    assert whole(original, compressed).shape == (4,)
    masked = as_divergence(lambda a, b, t: (a - b).abs().mean(1) * t)
    found = masked(original, compressed, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert float(found[1:].abs().max()) == 0.0
    with pytest.raises(InputError, match="is a function"):
        as_divergence(3)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_what_is_taught_is_tau_squared_times_the_softened_divergence(tau: float) -> None:
    teacher, model = outputs(8, 5, seed=12)
    wanted = tau**2 * SoftmaxKL()(teacher / tau, model / tau).mean()
    assert float(SoftmaxKL().taught(model, teacher, tau)) == pytest.approx(float(wanted))
    flags = tau**2 * SigmoidKL()(teacher / tau, model / tau).mean() / 5  # as a mean over columns
    assert float(SigmoidKL().taught(model, teacher, tau)) == pytest.approx(float(flags))
    numbers = float((teacher - model).square().mean())
    assert float(GaussianKL().taught(model, teacher, tau)) == pytest.approx(numbers)


MASKED = torch.tensor([[True, False, False, True, False], [False, True, False, True, True]])
DIVERGENCES = [SoftmaxKL(), SigmoidKL(), SigmoidKL(positions=True), GaussianKL()]


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)
def test_what_both_mask_makes_no_difference(divergence: Divergence) -> None:
    """As if the masked columns were not there; their gradient is none."""
    original, compressed = outputs(2, 5)
    own = divergence.fitted(original)
    for sign in (-torch.inf, torch.inf)[: 1 if isinstance(divergence, SoftmaxKL) else 2]:
        theirs = original.masked_fill(MASKED, sign)
        leaf = compressed.clone().requires_grad_()
        ours = leaf.masked_fill(MASKED, sign)
        assert own(theirs, theirs).tolist() == [0.0, 0.0]
        found = own(theirs, ours)
        if not isinstance(divergence, SigmoidKL) or not divergence.positions:
            alone = [divergence_of_columns(own, original, compressed, row) for row in range(2)]
            assert found.tolist() == pytest.approx(alone, rel=1e-6)
        for loss in (found.sum(), own.taught(ours, theirs, 2.0)):
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            assert bool(gradient.isfinite().all())
            assert float(gradient[MASKED].abs().max()) == 0.0
            assert float(gradient[0, ~MASKED[0]].abs().min()) > 0.0


def divergence_of_columns(own: Divergence, original: Tensor, compressed: Tensor, row: int) -> float:
    """Of one row, without its masked columns."""
    kept = ~MASKED[row]
    if isinstance(own, GaussianKL):
        own = replace(own, variance={n: v[kept] for n, v in own.variance.items()})
    return float(own(original[row : row + 1, kept], compressed[row : row + 1, kept]))


def test_a_mask_that_differs_is_as_far_as_can_be() -> None:
    original, compressed = (x.float() for x in outputs(2, 5))
    masked = compressed.masked_fill(MASKED, -torch.inf)
    for divergence in DIVERGENCES:
        found = divergence.fitted(original)(original, masked)
        assert float(found.min()) > 1e30
    # what the original never chooses may be anything
    theirs = original.masked_fill(MASKED, -torch.inf)
    assert bool(SoftmaxKL()(theirs, compressed).isfinite().all())


def test_rows_that_are_masked_as_a_whole_are_alike() -> None:
    nothing = torch.full((2, 3, 4), -torch.inf, requires_grad=True)
    found = SoftmaxKL()(nothing.detach(), nothing)
    assert found.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(found.sum(), nothing)
    assert float(gradient.abs().max()) == 0.0


def test_the_scale_of_a_column_is_that_of_its_finite_numbers() -> None:
    original, _ = outputs(40, 3)
    hidden = original.clone()
    hidden[::2, 1] = -torch.inf
    hidden[:, 2] = -torch.inf
    (found,) = GaussianKL().fitted(hidden).variance.values()  # type: ignore[attr-defined]  # of this kind
    wanted = [original[:, 0].var(correction=0), original[1::2, 1].var(correction=0)]
    assert found[:2].tolist() == pytest.approx([float(w) for w in wanted])
    assert bool(found.isfinite().all())


def test_one_logit_per_pixel_is_averaged_over_pixels() -> None:
    original, compressed = outputs(3, 1, 4, 5)
    found = SigmoidKL(positions=True)(original, compressed)
    wanted = kl_divergence(Bernoulli(logits=original), Bernoulli(logits=compressed))
    assert found.tolist() == pytest.approx(wanted.flatten(1).mean(1).tolist(), rel=1e-6)

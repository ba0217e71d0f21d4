"""Divergences against torch's distributions, scipy's entropy and numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import entropy, norm
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from autocompress.errors import InputError
from autocompress.task.divergence import choose_divergence, class_divergence


def outputs(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An original's outputs, and those of something near it."""
    generator = torch.Generator().manual_seed(seed)
    original = 2.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return original, original + 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 5), (4, 2), (3, 6, 5)])
def test_classes_against_scipys_entropy(shape: tuple[int, ...]) -> None:
    original, compressed = outputs(*shape)
    found = choose_divergence("classes", original)(original, compressed)
    p, q = (x.double().softmax(-1).flatten(0, -2).numpy() for x in (original, compressed))
    assert found.numpy() == pytest.approx(entropy(p, q, axis=1), rel=1e-4)


@pytest.mark.parametrize("shape", [(9, 1), (9,), (4, 6, 1)])
def test_one_logit_against_torchs_bernoulli(shape: tuple[int, ...]) -> None:
    original, compressed = outputs(*shape, seed=1)
    found = choose_divergence("binary", original)(original, compressed)
    wanted = kl_divergence(Bernoulli(logits=original), Bernoulli(logits=compressed))
    assert found.tolist() == pytest.approx(wanted.flatten().tolist(), rel=1e-4)
    assert float(found.min()) > 0


def test_numbers_against_the_integral_over_two_normal_densities() -> None:
    original, compressed = outputs(6, 1, seed=2)
    found = choose_divergence("value", original)(original, compressed).tolist()
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
    assert choose_divergence(kind, original)(original, original).abs().max() < 1e-6  # type: ignore[arg-type]  # a kind


def test_a_softmax_over_one_column_is_said_rather_than_zero() -> None:
    with pytest.raises(InputError, match="always 1"):
        class_divergence(*outputs(5, 1))


def test_numbers_that_never_vary_have_no_scale() -> None:
    with pytest.raises(InputError, match="gives 3 for all of 4 inputs"):
        choose_divergence("value", torch.full((4, 1), 3.0))

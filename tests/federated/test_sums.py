"""Sums and histograms of parts are those of the whole, in whatever order they are merged."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.build.histogram import BINS, Histogram
from autocompress.build.ranges import RangeFinder, range_of
from autocompress.federated.noise import clipped, noise_factor, positive
from autocompress.federated.sums import ClientSums, Tree, why_refused
from autocompress.federated.triangles import triangle, whole
from autocompress.policy.settings import CompressionSettings

VALUES = st.lists(st.floats(-(2.0**90), 2.0**90, width=32) | st.floats(-2, 2, width=32), min_size=1)


def same(first: Histogram, second: Histogram) -> bool:
    return (
        first.frame == second.frame
        and (first.low, first.high) == (second.low, second.high)
        and np.array_equal(first.counts, second.counts)
    )


@given(st.lists(VALUES, min_size=2, max_size=4))
@settings(deadline=None, max_examples=200)
def test_merged_histograms_are_that_of_all_values(parts: list[list[float]]) -> None:
    own = [Histogram.of(np.array(part)) for part in parts]
    pooled = Histogram.of(np.concatenate([np.array(part) for part in parts]))
    forwards, backwards = own[0], own[-1]
    for one in own[1:]:
        forwards = forwards + one
    for one in reversed(own[:-1]):
        backwards = one + backwards
    assert same(forwards, pooled)
    assert same(backwards, pooled)
    assert pooled.counts.sum() == sum(map(len, parts))
    assert len(pooled.counts) <= BINS


@given(VALUES)
@settings(deadline=None, max_examples=200)
def test_every_value_lies_in_the_bin_that_counts_it(values: list[float]) -> None:
    found = Histogram.of(np.array(values))
    edges = [math.ldexp(found.first + i, found.exponent) for i in range(len(found.counts) + 1)]
    expected = [sum(a <= v < b for v in values) for a, b in pairwise(edges)]
    assert found.counts.tolist() == expected


def test_values_that_are_not_finite_have_no_histogram() -> None:
    for bad in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite"):
            Histogram.of(np.array(bad))


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_ranges_of_histograms_are_those_of_the_values(ranges: str) -> None:
    values = np.random.default_rng(0).gamma(2.0, 1.0, 16_000).astype(np.float32) - 0.5
    chosen = CompressionSettings(ranges=ranges, percentile=99.0)
    finder = RangeFinder(chosen)
    finder.add(values)
    exact, found = finder.range(), range_of(Histogram.of(values), chosen)
    step = (values.max() - values.min()) / BINS * 2
    # the squared error is searched on a grid of clips, whose neighbours are all but equal
    near = 0.03 * (exact.high - exact.low) if ranges == "mse" else float(step)
    assert found.high == pytest.approx(exact.high, abs=near)
    assert found.low == pytest.approx(exact.low, abs=near)


@given(st.permutations(range(13)), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_the_tree_adds_up_in_any_order(order: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    each = [
        ClientSums(
            {"a": draw.normal(size=(2, 3)).astype(np.float32), "n": np.array([i])},
            {"h": Histogram.of(draw.normal(size=50))},
        )
        for i in range(13)
    ]
    tree = Tree()
    for place, i in enumerate(order):
        tree.add(each[i])
        assert len(tree.parts) <= 1 + math.log2(place + 1)
    total = tree.result()
    exact = [math.fsum(float(one["a"].flat[k]) for one in each) for k in range(6)]
    np.testing.assert_allclose(total["a"].ravel(), exact, rtol=1e-12, atol=1e-12)
    assert total["n"].tolist() == [sum(range(13))]
    assert total.histograms["h"].counts.sum() == 13 * 50
    again = ClientSums.from_arrays(total.to_arrays())
    assert np.array_equal(again["a"], total["a"])
    assert same(again.histograms["h"], total.histograms["h"])


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        (ClientSums({"a": np.array([1.0, math.nan])}), "not finite"),
        (ClientSums({"a": np.array([1.0])}), "shape"),
        (ClientSums({"b": np.array([1.0, 2.0])}), "missing"),
        (ClientSums({"a": np.array([1.0, 2.0]), "b": np.zeros(1)}), "nobody asked"),
        (ClientSums({"a": np.array(["x", "y"])}), "no numbers"),
    ],
)
def test_sums_that_do_not_fit_are_refused_with_a_reason(sums: ClientSums, reason: str) -> None:
    assert reason in why_refused(sums, {"a": (2,)})
    assert why_refused(ClientSums({"a": np.array([1.0, 2.0])}), {"a": (2,)}) == ""


def test_histograms_that_lie_about_their_bins_are_refused() -> None:
    good = Histogram.of(np.array([0.0, 1.0, 3.0]))
    assert why_refused(ClientSums({}, {"h": good}), {"h": None}) == ""
    longer = Histogram(good.exponent, good.first, np.ones(5, np.int64), good.low, good.high)
    negative = Histogram(good.exponent, good.first, -good.counts, good.low, good.high)
    endless = Histogram(good.exponent, good.first, good.counts, good.low, math.inf)
    for bad in (longer, negative, endless):
        assert why_refused(ClientSums({}, {"h": bad}), {"h": None})


def test_triangles_hold_symmetric_matrices() -> None:
    rows = torch.randn(2, 7, 5)
    second = rows.transpose(1, 2) @ rows
    packed = triangle(second)
    assert packed.shape == (2, 15)
    assert torch.equal(whole(packed), second)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (3.0, 1e-6), (20.0, 1e-5)])
def test_noise_is_as_large_as_differential_privacy_asks(epsilon: float, delta: float) -> None:
    """Against the privacy loss of two Gaussians, integrated."""
    sigma = noise_factor(epsilon, delta)

    def lost(scale: float) -> float:
        x = np.linspace(-40 * scale, 40 * scale + 1, 2_000_001)
        densities = [np.exp(-((x - m) ** 2) / (2 * scale**2)) for m in (0.0, 1.0)]
        step = (x[1] - x[0]) / (scale * math.sqrt(2 * math.pi))
        return float(np.maximum(densities[1] - math.exp(epsilon) * densities[0], 0).sum() * step)

    assert lost(sigma) == pytest.approx(delta, rel=0.02)
    assert lost(0.98 * sigma) > delta


def test_no_sample_adds_more_than_its_limit() -> None:
    rows = 10 * torch.randn(1, 6 * 4, 3)
    scaled = clipped(9.0)(rows, 6).view(1, 6, 4, 3)
    ones = torch.cat([scaled, torch.ones(1, 6, 4, 1)], -1)
    norms = torch.einsum("gnpi,gnpj->gnij", ones, ones).flatten(2).norm(dim=2)
    assert float(norms.max()) <= 9.0 * (1 + 1e-5)
    small = 0.1 * torch.ones(1, 6 * 4, 3)
    assert torch.allclose(clipped(9.0)(small, 6), small)


def test_noisy_moments_are_made_positive() -> None:
    noisy = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]], dtype=torch.float64)
    values = torch.linalg.eigvalsh(positive(noisy))
    assert values.flatten().tolist() == pytest.approx([0.0, 3.0], abs=1e-9)

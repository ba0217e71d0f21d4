"""The front of all chains beside a search that tries each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from cascades import drawn_members
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.cascade.bound import score
from autocompress.cascade.chain import Chain, Member
from autocompress.cascade.choose import counts
from autocompress.cascade.confidence import OF_ONE
from autocompress.cascade.options import best_options


def every_chain(members: Sequence[Member]) -> Iterator[Chain]:
    """Single members, and two or three (the quickest first) at every threshold that tells inputs
    apart."""
    for i in range(len(members)):
        yield Chain((i,), "probability", ())
    for kind in OF_ONE:
        for size in (2, 3):
            for some in itertools.combinations(range(len(members)), size):
                values = [np.unique(members[i].sure[kind]) for i in some[:-1]]
                for thresholds in itertools.product(*values):
                    yield Chain(some, kind, tuple(map(float, thresholds)))
    for some in itertools.combinations(range(len(members)), 3):
        sure = Chain(some, "agreement", (0.5,)).sure(0, members)
        for value in np.unique(sure[sure > 0]):
            yield Chain(some, "agreement", (float(value),))


def stage_by_stage(chain: Chain, members: Sequence[Member], i: int) -> tuple[float, bool]:
    """What one input costs and whether its answer is right, told without arrays."""
    spent = 0.0
    for stage, asked in enumerate(chain.stages):
        spent += sum(members[m].latency_ms for m in asked)
        if stage == len(chain.thresholds):
            break
        if len(asked) == 2:
            one, two = (members[m] for m in asked)
            same = one.answers[i] == two.answers[i]
            sure = min(one.sure["probability"][i], two.sure["probability"][i]) if same else 0
        else:
            sure = members[asked[0]].sure[chain.confidence][i]
        if sure >= chain.thresholds[stage]:
            break
    return spent, bool(members[asked[-1]].right[i])


def front_by_trying(
    members: Sequence[Member], baseline: np.ndarray, allowed: float
) -> list[tuple[float, float]]:
    found = []
    count = len(baseline)
    for chain in every_chain(members):
        each = [stage_by_stage(chain, members, i) for i in range(count)]
        right = np.array([r for _, r in each])
        losses, gains = (baseline & ~right).sum(), (~baseline & right).sum()
        value = (allowed * count - losses + gains) / np.sqrt(losses + gains + 1)
        found.append((float(np.mean([ms for ms, _ in each])), float(value)))
    kept: list[tuple[float, float]] = []
    for ms, value in sorted(found, key=lambda p: (round(p[0], 9), -p[1])):
        if not kept or value > kept[-1][1] + 1e-12:
            kept.append((ms, value))
    return kept


@given(seed=st.integers(0, 10_000), count=st.integers(6, 14))
@settings(max_examples=15, deadline=None)
def test_the_front_is_that_of_trying_every_chain(seed: int, count: int) -> None:
    members, _ = drawn_members(count, (2.0, 1.0, 0.5), (1.0, 2.5, 4.0), seed)
    baseline = members[-1].right
    allowed = 0.05
    options = best_options(members, baseline, lambda a, b: score(a, b, count, allowed))
    tried = front_by_trying(members, baseline, allowed)
    assert len(options) == len(tried)
    for option, (ms, value) in zip(options, tried, strict=True):
        assert option.latency_ms == pytest.approx(ms)
        assert option.score == pytest.approx(value)


@pytest.mark.parametrize("seed", range(5))
def test_an_option_is_what_its_chain_does(seed: int) -> None:
    """With thresholds between confidences, which are rounded to half their digits in between."""
    members, _ = drawn_members(300, (2.0, 1.5, 1.0, 0.5), (1.0, 1.5, 2.5, 4.0), seed)
    baseline = members[-1].right
    options = best_options(members, baseline, lambda losses, gains: gains - losses, levels=20)
    assert {len(o.chain.members) for o in options} == {1, 2, 3}
    for option in options:
        losses, gains = counts(option.chain, members, baseline)
        assert option.score == gains - losses
        assert option.latency_ms == pytest.approx(option.chain.mean_ms(members))


def test_ties_are_never_told_apart() -> None:
    """Of inputs with the same confidence a threshold answers all or none."""
    members, _ = drawn_members(60, (1.5, 0.5), (1.0, 4.0))
    coarse = {kind: np.round(v, 1) for kind, v in members[0].sure.items()}
    first = Member("coarse", 1.0, members[0].answers, members[0].right, coarse)
    options = best_options([first, members[1]], members[1].right, lambda a, b: b - a)
    for option in (o for o in options if o.chain.thresholds):
        (threshold,) = option.chain.thresholds
        assert not np.isclose(coarse[option.chain.confidence], threshold, atol=1e-9).any() or (
            threshold in coarse[option.chain.confidence]
        )
        assert option.latency_ms == pytest.approx(option.chain.mean_ms([first, members[1]]))

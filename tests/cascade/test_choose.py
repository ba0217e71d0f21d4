"""What is chosen holds for inputs not seen, as often as it says; bad cases are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cascades import drawn_members
from scipy.special import log_softmax
from scipy.stats import binom, entropy

from autocompress.cascade.bound import inputs_needed
from autocompress.cascade.chain import Member
from autocompress.cascade.choose import Asked, choose, halves
from autocompress.cascade.confidence import OF_ONE, as_logits, confidence
from autocompress.cascade.options import best_options
from autocompress.cascade.temperature import fit_temperature
from autocompress.errors import InputError, NoAnswer

NOISES, LATENCIES = (1.3, 1.0, 0.7, 0.45), (1.0, 1.6, 2.6, 5.0)


def parts(members: list[Member], count: int) -> tuple[list[Member], np.ndarray, tuple]:
    """Members of the first ``count`` inputs, the uncompressed model's answers, and two halves."""
    chosen = np.arange(count)
    return (
        [m.on(chosen) for m in members],
        members[-1].right[:count],
        (np.arange(count // 2), np.arange(count // 2, count)),
    )


def test_what_is_asked_is_kept_on_data_not_seen() -> None:
    """Over many draws: broken no more often than 5 %, up to chance at 1 in 1000."""
    draws, broken, answered, ratios = 60, 0, 0, []
    count, unseen, allowed = 3000, 20_000, 0.02
    for seed in range(draws):
        members, _ = drawn_members(count + unseen, NOISES, LATENCIES, seed, count // 2)
        few, baseline, (first, second) = parts(members, count)
        try:
            found = choose(few, baseline, first, second, Asked(most_lost=allowed))
        except NoAnswer:
            continue
        answered += 1
        rest = [m.on(np.arange(count, count + unseen)) for m in members]
        lost = rest[-1].right.mean() - found.chain.right(rest).mean()
        broken += lost > allowed
        ratios.append(found.chain.mean_ms(rest) / LATENCIES[-1])
        assert found.mean_ms == pytest.approx(found.chain.mean_ms(rest), rel=0.1)
    assert answered > draws / 2
    assert broken <= binom.ppf(0.999, draws, 0.05)
    assert np.mean(ratios) < 0.8, "it would be of no use"


def test_thresholds_chosen_on_seen_inputs_alone_would_break_it() -> None:
    """What the second half is for: the front's own figures are too good."""
    broken, draws, allowed = 0, 30, 0.01
    for seed in range(draws):
        members, _ = drawn_members(600 + 20_000, NOISES, LATENCIES, seed, 300)
        few, baseline, (first, _) = parts(members, 600)
        seen = [m.on(first) for m in few]
        options = best_options(seen, baseline[first], lambda a, b: b - a)
        quickest = next(o for o in options if o.score >= -allowed * len(first))
        rest = [m.on(np.arange(600, 20_600)) for m in members]
        broken += rest[-1].right.mean() - quickest.chain.right(rest).mean() > allowed
    assert broken > binom.ppf(0.999, draws, 0.05)


def test_a_mean_latency_is_kept() -> None:
    broken, draws, most = 0, 20, 2.2
    for seed in range(draws):
        members, _ = drawn_members(1000 + 10_000, NOISES, LATENCIES, seed, 500)
        few, baseline, (first, second) = parts(members, 1000)
        found = choose(few, baseline, first, second, Asked(mean_ms=most))
        assert len(found.chain.members) > 1
        rest = [m.on(np.arange(1000, 11_000)) for m in members]
        broken += found.chain.mean_ms(rest) > most
        best = max(m.right.mean() for m in rest if m.latency_ms <= most)
        assert found.chain.right(rest).mean() > best
    assert broken <= binom.ppf(0.999, draws, 0.05)


def test_members_off_the_front_take_part() -> None:
    """Two members that err on different inputs are better together than their betters alone."""
    rng = np.random.default_rng(0)
    count = 4000
    hard = rng.random(count) < 0.3
    sure = np.where(hard, 0.4, 0.9) + 0.05 * rng.random(count)
    truth = np.zeros(count, int)

    def member(label: str, ms: float, right: np.ndarray, sure: np.ndarray) -> Member:
        answers = np.where(right, 0, 1)
        return Member(label, ms, answers, answers == truth, dict.fromkeys(OF_ONE, sure))

    flat = 0.5 + 0.001 * rng.random(count)
    good = member("good", 1.0, rng.random(count) < 0.93, flat)
    # worse and slower than `good`, and right wherever it is sure
    honest = member("honest", 1.2, ~hard | (rng.random(count) < 0.5), sure)
    large = member("large", 5.0, rng.random(count) < 0.99, flat)
    members = [good, honest, large]
    first, second = halves(count)
    found = choose(members, large.right, first, second, Asked(most_lost=0.01))
    assert [members[i].label for i in found.chain.members] == ["honest", "large"]
    (handed,) = found.handed
    assert 0.24 < handed < 0.32, "of the hard ones nearly all, as little may be lost"


def test_bad_cases_are_refused_with_the_reason() -> None:
    members, _ = drawn_members(4000, NOISES, LATENCIES)
    first, second = halves(4000)
    base = members[-1].right
    with pytest.raises(InputError, match="needs two members"):
        choose(members[:1], base, first, second, Asked(most_lost=0.01))
    same = [replace(m, answers=members[0].answers) for m in members]
    with pytest.raises(InputError, match="the same answer to every input"):
        choose(same, base, first, second, Asked(most_lost=0.01))
    certain = [replace(m, sure=dict.fromkeys(OF_ONE, np.ones(4000))) for m in members]
    with pytest.raises(InputError, match="confidence tells one input from another: it is 1 "):
        choose(certain, base, first, second, Asked(most_lost=0.01))
    with pytest.raises(InputError, match="with 2000 inputs") as small:
        choose(members, base, first, second, Asked(most_lost=0.001))
    assert f"{inputs_needed(0.001)} are needed" in str(small.value)
    with pytest.raises(NoAnswer, match=r"quickest takes 1\.000 ms"):
        choose(members, base, first, second, Asked(mean_ms=0.5))
    early = [replace(members[0], exit="x"), *members[1:]]  # no model alone, and first of the quick
    with pytest.raises(NoAnswer, match=r"1\.001 ms is not shown .*quickest takes 1\.00[0-9] ms"):
        choose(early, base, first, second, Asked(mean_ms=1.001))
    with pytest.raises(NoAnswer, match=r"trial 0 keeps to it with 1\.000 ms"):
        choose(members, base, first, second, Asked(most_lost=0.9))
    with pytest.raises(InputError, match="either"):
        Asked()


@pytest.mark.parametrize("wanted", [0.5, 2.0])
def test_the_temperature_is_that_which_the_logits_were_drawn_at(wanted: float) -> None:
    rng = np.random.default_rng(1)
    true = 3 * rng.standard_normal((20_000, 4))
    each = np.exp(log_softmax(true, axis=1))
    targets = (each.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert fit_temperature(wanted * true, targets) == pytest.approx(wanted, rel=0.05)


def test_confidences_are_what_they_are_called() -> None:
    logits = np.log([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]])
    assert confidence("margin", logits) == pytest.approx([0.5, 0.0])
    assert confidence("entropy", logits) == pytest.approx([-entropy(p) for p in np.exp(logits)])
    hot = confidence("probability", logits, 2.0)
    roots = np.sqrt(np.exp(logits))
    assert hot == pytest.approx((roots / roots.sum(1, keepdims=True)).max(1))
    # far apart, where exponentials would overflow
    assert confidence("margin", np.array([[5000.0, -5000.0]])) == pytest.approx([1.0])
    two = as_logits(np.array([[0.3], [-2.0]]), "sigmoid")
    assert confidence("probability", two) == pytest.approx(1 / (1 + np.exp([-0.3, -2.0])))
    for bad in (np.zeros((4, 3, 2)), np.zeros((4, 1))):
        with pytest.raises(InputError):
            as_logits(bad, "softmax")
    with pytest.raises(InputError, match="finite"):
        Member.of("blind", 1.0, np.full((4, 3), np.nan), np.zeros(4), np.arange(4))
